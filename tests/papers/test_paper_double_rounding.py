import dataclasses
import math

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments import Run, Store
from limbeck.papers import double_rounding as module


@pytest.fixture
def small(tmp_path, monkeypatch):
    few = dataclasses.replace(DIGITS, train=96, training=dataclasses.replace(DIGITS.training, epochs=1))
    monkeypatch.setattr(module, "BED", few)
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


def test_every_arm_runs_with_as_many_passes(small):
    for name, arm in module.paper.arms.items():
        run = small()
        found = arm.run(run, **{**arm.candidates()[-1], "epochs": 3})
        assert all(math.isfinite(value) for value in found.values()), name
        assert run.costs["passes"] == 9, name


def test_the_composition_is_the_papers():
    assert module.WIDTHS == (8, 4, 2) and module.EPOCHS % len(module.WIDTHS) == 0
    model = module.prepared
    settings = {name: arm.settings for name, arm in module.paper.arms.items()}
    assert settings["method"] == {} and settings["baseline"] == {"separate": False} and callable(model)
