import math

import pytest
import torch

from limbeck.beds.canaries import CanaryBed
from limbeck.experiments import Run, Store
from limbeck.papers import swing


@pytest.fixture
def small(tmp_path, monkeypatch, tiny_text):
    import datasets

    rows = {"text": ["The code of Ada, Boris, Clara, David, Emma, Felix, Grace, Henry is 0123456789."] * 100}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "text" / "train.parquet")
    bed = CanaryBed(dataset=tiny_text, config=None, length=32, blocks=4, batch_size=4, teacher_steps=3, repeats=5)
    monkeypatch.setattr(swing, "BED", bed)
    monkeypatch.setattr(swing, "STUDENT", {"depth": 1, "width": 8, "heads": 2})
    return bed, lambda: Run(0, "validation", Store(tmp_path / "store"))


def test_every_arm_runs_and_spends_alike(small, monkeypatch):
    bed, make = small
    monkeypatch.setattr(type(bed), "exposure", lambda self, model: 1.0)
    for arm in swing.paper.arms.values():
        run = make()
        found = arm.run(run, **arm.settings, steps=2)
        assert {"perplexity", "loss", "exposure"} == set(found)
        assert all(math.isfinite(value) for value in found.values())
        assert run.costs == {"steps": 2, "samples": 8}


def test_canaries_stand_in_the_training_text_and_are_private_where_they_are_predicted(small):
    bed, make = small
    task = bed.task
    text = task.tokenizer.decode(task._data["train"])
    for prefix, secret in task.canaries:
        assert text.count(f"{prefix}{secret}.") == 5
        assert prefix not in task.tokenizer.decode(task._data["test"])
    digits = set(task.tokens("0123456789").tolist())
    for batch in task.batches("train", 16):
        private = batch["private"] > 0
        counted = batch["labels"] != -100
        assert set(batch["labels"][private & counted].tolist()) <= digits
        assert torch.equal(private & counted, torch.isin(batch["labels"], torch.tensor(sorted(digits))) & counted)
    assert 0 <= bed.exposure(bed.student(make(), depth=1, width=8, heads=2)) <= math.log2(10000)


def test_the_control_shields_as_many_tokens():
    objective = swing.OBJECTIVES["anywhere"]
    degree = torch.tensor([[1.0, 0, 0], [0, 0.5, 0]])
    found = objective._degree({"private": degree}, torch.zeros(2, 3, 4))
    assert sorted(found.flatten().tolist()) == sorted(degree.flatten().tolist())
