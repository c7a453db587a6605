"""Graph tasks on graphs made here: labels stay in their split, padding is marked, damaged data are refused."""

import numpy as np
import pytest
import torch

from limbeck import models
from limbeck.datasets.graphs import Graph, load_graph
from limbeck.errors import DataError, UsageError
from limbeck.objectives import CrossEntropy
from limbeck.tasks import GraphClassification, NodeClassification
from limbeck.training import Supervised, Trainer, TrainingConfig


def ring(count=12, **changes):
    around = torch.arange(count)
    edges = torch.stack([torch.cat([around, around.roll(1)]), torch.cat([around.roll(1), around])])
    labels = (around * 2 >= count).long()
    parts = {"train": around[::3], "validation": around[1::3], "test": around[2::3]}
    features = torch.nn.functional.one_hot(labels, 2).float() + 0.1 * torch.randn(count, 2)
    return Graph(**{"features": features, "edges": edges, "labels": labels, "nodes": parts, **changes})


def test_a_split_shows_the_whole_graph_and_only_its_own_labels():
    task = NodeClassification(ring())
    batches = {split: next(task.batches(split, 1)) for split in task.splits()}
    for split, batch in batches.items():
        shown = (batch["labels"][0] != -100).nonzero().squeeze(1)
        assert torch.equal(shown, task.graph.nodes[split])
        assert batch["node_features"].shape == (1, 12, 2)
        assert batch["edge_index"].shape == (1, 2, 24)


def test_training_ignores_the_labels_of_other_splits():
    """Scrambled validation and test labels change nothing that training yields."""
    made = []
    for flip in (False, True):
        graph = ring(features=torch.arange(24.0).reshape(12, 2) / 24)
        labels = graph.labels.clone()
        if flip:
            labels[graph.nodes["test"]] = 1 - labels[graph.nodes["test"]]
            labels[graph.nodes["validation"]] = 1 - labels[graph.nodes["validation"]]
        torch.manual_seed(0)
        model = models.gcn(2, 2, width=4)
        task = NodeClassification(Graph(graph.features, graph.edges, labels, graph.nodes))
        Trainer(TrainingConfig(steps=5, batch_size=1), progress=False).run(Supervised(model, CrossEntropy()), task)
        made.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*made))


def test_accuracy_is_of_the_splits_nodes():
    task = NodeClassification(ring())
    right = torch.nn.functional.one_hot(task.graph.labels, 2).float()[None]
    wrong = right.clone()
    wrong[0, task.graph.nodes["test"][0]] = wrong[0, task.graph.nodes["test"][0]].flip(0)
    assert task.evaluate(lambda batch: wrong, "test")["accuracy"] == pytest.approx(0.75)
    assert task.evaluate(lambda batch: wrong, "validation")["accuracy"] == 1
    with pytest.raises(UsageError, match="nodes"):
        task.evaluate(lambda batch: wrong[:, :3], "test")


def test_graphs_that_cannot_be_are_refused():
    for changes, word in [
        ({"edges": torch.tensor([[0], [12]])}, "outside"),
        ({"edges": torch.tensor([[1], [1]])}, "self-loops"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"nodes": {"train": torch.arange(3)}}, "nodes must name"),
        ({"nodes": dict.fromkeys(("train", "validation", "test"), torch.arange(3))}, "two splits"),
    ]:
        with pytest.raises(DataError, match=word):
            ring(**changes)


def test_a_missing_or_damaged_file_is_a_data_error(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    (tmp_path / "graphs").mkdir()
    with pytest.raises(DataError, match="nowhere"):
        load_graph("nowhere")
    (tmp_path / "graphs" / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="broken"):
        load_graph("broken")
    np.savez(tmp_path / "graphs" / "half.npz", x=np.zeros((2, 2)))
    with pytest.raises(DataError, match="half"):
        load_graph("half")


def collection(folder):
    import datasets

    rows = [
        {"edge_index": [[0, 1], [1, 0]], "y": [0], "num_nodes": 2, "node_feat": [[1.0, 0.0]] * 2},
        {"edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]], "y": [1], "num_nodes": 3, "node_feat": [[0.0, 1.0]] * 3},
    ]
    for split in ("train", "validation", "test"):
        datasets.Dataset.from_list(rows).to_parquet(folder / "graphs_tu" / "tiny" / f"{split}.parquet")
    (folder / "graphs_tu" / "README.md").write_text(
        "---\nconfigs:\n- config_name: tiny\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: tiny/{s}.parquet\n" for s in ("train", "validation", "test"))
        + "---\n"
    )


def test_graphs_are_padded_and_marked(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    collection(tmp_path)
    task = GraphClassification("tiny")
    batch = next(task.batches("train", 2))
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["edge_index"][0].tolist() == [[0, 1, -1, -1], [1, 0, -1, -1]]
    assert batch["labels"].tolist() == [0, 1]
    assert task.features == 2
    model = models.gcn(2, 2, width=4, readout=True)
    assert set(task.evaluate(lambda b: model(b["node_features"], b["edge_index"], b["attention_mask"]))) >= {"accuracy"}
    assert len(task.digest()) == 64
