"""Classification of the nodes of one graph, and of whole graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.graphs import Graph, load_graph, load_graphs
from limbeck.datasets.load import SPLITS
from limbeck.errors import UsageError
from limbeck.signals import first_tensor
from limbeck.tasks.base import IGNORED, Classification, Forward, Task, cross_entropy


class NodeClassification(Task):
    """The nodes of one graph, all of it in every batch: an example is the whole graph, a position is a node.

    graph: "cora", "citeseer" (see `limbeck.datasets.graphs.load_graph`) or a `Graph`. Every split shows the same features and
    edges (the transductive setting) and the labels of its own nodes only: those of all others are -100.

    Batches: node_features (1, N, F), edge_index (1, 2, E), labels (1, N), index (1,). A model answers (1, N, classes).
    """

    name = "node_classification"
    metric = "accuracy"
    better = "higher"
    inputs = ("node_features", "edge_index")

    def __init__(self, graph: str | Graph = "cora"):
        self.dataset = graph if isinstance(graph, str) else "graph"
        self.graph = load_graph(graph) if isinstance(graph, str) else graph
        self.classes = tuple(str(label) for label in range(int(self.graph.labels.max()) + 1))

    @property
    def features(self) -> int:
        """The width of the nodes' features."""
        return self.graph.features.shape[1]

    def size(self, split: str) -> int:
        self._check_split(split)
        return 1

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        labels = torch.full_like(self.graph.labels, IGNORED)
        nodes = self.graph.nodes[split]
        labels[nodes] = self.graph.labels[nodes]
        whole = {"node_features": self.graph.features, "edge_index": self.graph.edges, "labels": labels}
        return {key: value.expand(len(index), *value.shape) for key, value in whole.items()}

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 1, limit: int | None = None
    ) -> dict[str, float]:
        """Accuracy and loss on the nodes of a split."""
        batch = next(iter(self.batches(split, 1)))
        with torch.no_grad():
            logits = first_tensor(forward(batch)).detach().float().cpu()
        if logits.shape != (*batch["labels"].shape, len(self.classes)):
            raise UsageError(
                f"the model returned {tuple(logits.shape)} for a graph of {batch['labels'].shape[1]} nodes and "
                f"{len(self.classes)} classes: it must give (1, nodes, classes)"
            )
        counted = batch["labels"] != IGNORED
        right = (logits.argmax(-1) == batch["labels"])[counted]
        return {"accuracy": right.double().mean().item(), "loss": cross_entropy(logits, batch["labels"]).item()}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name}
        yield from (self.graph.features, self.graph.edges, self.graph.labels)
        for split in SPLITS:
            yield from (split, self.graph.nodes[split])


class GraphClassification(Classification):
    """Whole graphs: "mutag", "proteins" or another config of the collection `dataset`.

    Batches, padded to the largest graph of the batch: node_features (B, N, F), edge_index (B, 2, E) with -1 where a graph has
    fewer edges, attention_mask (B, N), labels (B,), index.
    """

    name = "graph_classification"
    inputs = ("node_features", "edge_index", "attention_mask")

    def __init__(self, collection: str = "mutag", dataset: str = "graphs_tu"):
        self.dataset = f"{dataset}/{collection}"
        self._data = load_graphs(collection, dataset)
        labels = torch.cat([part.labels for part in self._data.values()])
        self.classes = tuple(str(label) for label in range(int(labels.max()) + 1))

    @property
    def features(self) -> int:
        """The width of the nodes' features."""
        return self._data["train"].features[0].shape[1]

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._data[split].labels)

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        found = self._data[split]
        features = [found.features[i] for i in index.tolist()]
        edges = [found.edges[i].T for i in index.tolist()]
        counts = torch.tensor([len(x) for x in features])
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "node_features": pad(features, batch_first=True),
            "edge_index": pad(edges, batch_first=True, padding_value=-1).transpose(1, 2),
            "attention_mask": (torch.arange(int(counts.max())) < counts[:, None]).long(),
            "labels": found.labels[index],
        }

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "classes": self.classes}
        for split in self.splits():
            found: Mapping[str, Any] = vars(self._data[split])
            yield from (split, *found["features"], *found["edges"], found["labels"])
