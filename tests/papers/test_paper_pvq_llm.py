import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Run, Store
from limbeck.papers import decoupleq
from limbeck.papers import pvq_llm as module


@pytest.fixture
def small(tmp_path, monkeypatch):
    bed = dataclasses.replace(CHARACTERS, blocks=4, teacher_steps=2, length=32)
    monkeypatch.setattr(module, "BED", bed)
    monkeypatch.setattr(decoupleq, "BED", bed)
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


def test_every_arm_runs_and_sees_as_many_examples(small):
    found = {}
    for name, arm in module.paper.arms.items():
        run = small()
        found[name] = arm.run(run, **{**arm.candidates()[0], "examples": 16})
        assert all(math.isfinite(value) for value in found[name].values())
        assert run.costs["examples"] == 16
    weights = 4 * (4 * 128 * 128 + 2 * 128 * 512)
    for name in ("method", "baseline", "control", "plain", "uniform", "unrotated"):
        assert 3.15 * weights <= 8 * found[name]["bytes"] <= 3.25 * weights
    assert found["low"]["bytes"] <= found["gptq_low"]["bytes"] == 2.25 * weights / 8
    assert found["plain"]["weight_error"] < found["method"]["weight_error"]


def test_the_composition_is_the_papers(small, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "quantized", lambda run, *given, **settings: asked.append((*given, settings)) or {})
    module.paper.method.run(small())
    ((rotated, rounding, settings),) = asked
    assert rotated and rounding == "vector_feedback"
    assert settings["grid"]["gains"] == "beta" and settings["grid"]["entries"] == 16
    for grid in module.SCALARS:
        module.paper.baseline.run(small(), grid=grid)
    assert [given[1] for given in asked[1:]] == ["gptq"] * 3
