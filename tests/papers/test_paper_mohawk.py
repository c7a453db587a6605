import dataclasses
import math

import pytest
import torch

from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.models import gpt
from limbeck.papers import mohawk

TINY = dataclasses.replace(mohawk.BED, length=16, teacher_steps=2, batch_size=4, blocks=4)


@pytest.mark.skipif(find_folder("tinyshakespeare") is None, reason="the data set is not on this machine")
def test_the_arms_run_at_one_budget(tmp_path):
    store, spent = Store(tmp_path), set()
    for arm in mohawk.paper.arms.values():
        run = Run(0, "validation", store)
        found = mohawk.staged(run, **arm.settings, learning_rate=1e-3, steps=25, bed=TINY, depth=2, width=8, heads=2)
        assert all(math.isfinite(value) for value in found.values())
        spent.add((run.costs["steps"], run.costs["samples"]))
    assert spent == {(25, 100)}


def test_only_scratch_forgets_the_teacher():
    teacher = gpt(11, length=8, depth=2, width=8, heads=2)
    kept, fresh = mohawk.converted(teacher, 3), mohawk.converted(teacher, 3, fresh=True)
    assert torch.equal(kept.tokens.weight, teacher.tokens.weight)
    assert not torch.allclose(fresh.tokens.weight, teacher.tokens.weight)
    assert type(kept.blocks[1].attention).__name__ == "StateSpaceMixer"
    assert not torch.allclose(
        kept.blocks[0].attention.gate.weight, mohawk.converted(teacher, 4).blocks[0].attention.gate.weight
    )
    hybrid = mohawk.converted(teacher, 3, keep=("blocks.1.attention",))
    assert type(hybrid.blocks[1].attention).__name__ == "Attention"


def test_the_stages_are_those_of_the_claim():
    assert list(mohawk.ALL) == ["matrix", "hidden", "logits"] and sum(mohawk.ALL.values()) == pytest.approx(1)
