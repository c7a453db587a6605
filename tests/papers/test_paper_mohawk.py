import dataclasses
import math

import pytest
import torch

from limbeck.beds.recall import Recall
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.models import gpt
from limbeck.papers import mohawk

RECALL = Recall(pairs=2, queries=3, vocabulary=8, examples=64, depth=2, width=8, heads=2, steps=2, batch_size=4)
TINY = dataclasses.replace(mohawk.BED, length=16, teacher_steps=2, batch_size=4, blocks=4)


@pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")
def test_the_arms_run_at_one_budget(tmp_path):
    store, spent = Store(tmp_path), set()
    for arm in mohawk.paper.arms.values():
        run = Run(0, "validation", store)
        sizes = {"depth": 2, "width": 8, "heads": 2}
        found = arm.run(run, **arm.settings, steps=25, recall_steps=25, text=TINY, recall=RECALL, sizes=sizes)
        assert set(found) >= {"perplexity", "recall"}
        assert all(math.isfinite(value) for value in found.values())
        spent.add((run.costs["steps"], run.costs["samples"]))
    assert spent == {(50, 200)}


def test_only_mixers_are_new():
    teacher = gpt(11, length=8, depth=2, width=8, heads=2)
    kept = mohawk.converted(teacher, 3)
    assert torch.equal(kept.tokens.weight, teacher.tokens.weight)
    assert type(kept.blocks[1].attention).__name__ == "StateSpaceMixer"
    assert not torch.allclose(
        kept.blocks[0].attention.gate.weight, mohawk.converted(teacher, 4).blocks[0].attention.gate.weight
    )
    hybrid = mohawk.converted(teacher, 3, keep=("blocks.1.attention",))
    assert type(hybrid.blocks[1].attention).__name__ == "Attention"


@pytest.mark.parametrize("stages", [{"scratch": 1.0}, {"logits": 1.0}], ids=lambda stages: next(iter(stages)))
def test_only_scratch_forgets_the_teacher(stages, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Recall, "fit", lambda self, run, student, **_: seen.append(student))
    run = Run(0, "validation", Store(tmp_path))
    mohawk.staged(run, RECALL, stages, 1e-3, (), 2, {})
    same = torch.equal(seen[0].tokens.weight, RECALL.teacher(run).tokens.weight)
    assert same == ("logits" in stages) and run.costs["parameters"] > 0


def test_the_stages_are_those_of_the_claim():
    assert list(mohawk.ALL) == ["matrix", "hidden", "logits"] and sum(mohawk.ALL.values()) == pytest.approx(1)
