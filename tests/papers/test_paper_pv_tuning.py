import dataclasses
import math

import pytest

from limbeck.beds.language import CHARACTERS
from limbeck.experiments import Run, Store
from limbeck.papers import pv_tuning as module
from limbeck.quantization import CodebookGrid


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BED", dataclasses.replace(CHARACTERS, blocks=4, length=16))
    monkeypatch.setattr(module, "ORIGINAL", {"depth": 1, "width": 32, "heads": 2, "steps": 2})
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


def test_every_arm_runs_and_spends_alike(small):
    spent = set()
    for name, arm in module.paper.arms.items():
        run = small()
        settings = {**arm.candidates()[-1], "steps": 2} if name != "start" else {}
        found = arm.run(run, **settings)
        assert all(math.isfinite(value) for value in found.values()), name
        spent.add((run.costs["bytes"], run.costs.get("steps", 2), run.costs.get("samples", 16)))
    assert len(spent) == 1


def test_the_composition_is_the_papers():
    grid = module.CODES.specification.quantizer.grid
    assert isinstance(grid, CodebookGrid) and grid.bits == 1.0
    assert module.paper.baseline.settings == {"share": 1.0} and module.paper.control.settings == {"share": 0.0}
