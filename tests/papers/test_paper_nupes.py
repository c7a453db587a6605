import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Run, Store
from limbeck.papers import nupes as module
from limbeck.quantization import Quantize, SearchedPowerGrid


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BED", dataclasses.replace(CHARACTERS, blocks=4, teacher_steps=2, length=32))
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(small, name):
    run, arm = small(), module.paper.arms[name]
    few = {"steps": 2} if arm.run in (module.learned, module.uniform) else {}
    found = arm.run(run, **{**arm.candidates()[-1], "examples": 16, **few})
    assert all(math.isfinite(value) for value in found.values())
    assert run.costs["examples"] == 16


def test_the_composition_is_the_papers():
    assert module.BITS == 3
    quantizer = Quantize(bits=3, grid=module.SEARCHED, activations=None).specification.quantizer
    assert quantizer.grid == SearchedPowerGrid(3) and quantizer.method == "minmax"
    settings = {name: arm.settings for name, arm in module.paper.arms.items()}
    assert settings["baseline"] == {"exponents": False, "reach": 1} and settings["whole_grid"] == {"exponents": False}
