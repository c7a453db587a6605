import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Run, Store
from limbeck.papers import jlcm as module
from limbeck.quantization import CodebookGrid, PerRows, Quantize


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BED", dataclasses.replace(CHARACTERS, blocks=4, teacher_steps=2, length=32))
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_sees_as_many_examples(small, name):
    run, arm = small(), module.paper.arms[name]
    few = {"steps": 2} if arm.run is module.learned else {}
    found = arm.run(run, **{**arm.candidates()[-1], "examples": 16, **few})
    assert all(math.isfinite(value) for value in found.values())
    assert run.costs["examples"] == 16


def test_the_composition_is_the_papers():
    quantizer = Quantize(bits=2, weights=module.ROWS, grid="kmeans", activations=None).specification.quantizer
    assert quantizer.grid == CodebookGrid(2) and quantizer.granularity == PerRows(32)
    settings = {name: arm.settings for name, arm in module.paper.arms.items()}
    assert settings["control"] == {"proximal": False} and settings["baseline"] == module.TENSOR
