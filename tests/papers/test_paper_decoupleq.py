import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Run, Store
from limbeck.papers import decoupleq as module
from limbeck.quantization import AffineGrid, Quantize


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BED", dataclasses.replace(CHARACTERS, blocks=4, teacher_steps=2, length=32))
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(small, name):
    run, arm = small(), module.paper.arms[name]
    found = arm.run(run, **{**arm.candidates()[-1], "examples": 16})
    assert all(math.isfinite(value) for value in found.values())
    assert run.costs["examples"] == 16


def test_calibration_examples_follow_the_seed():
    task = CHARACTERS.task
    first, again, other = (
        next(iter(module.Drawn(task, s).batches("train", 4, limit=4)))["input_ids"] for s in (0, 0, 1)
    )
    assert (first == again).all() and (first != other).any()
    assert len(list(module.Drawn(task, 0).batches("train", 16, limit=128))) == 8


def test_the_composition_is_the_papers():
    assert module.GROUP == 64
    assert Quantize(bits=2, weights=64, grid="affine", activations=None).specification.quantizer.grid == AffineGrid(2)
