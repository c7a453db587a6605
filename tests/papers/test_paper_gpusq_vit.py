import dataclasses
import math

import pytest
import torch

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.experiments import Run, Store
from limbeck.objectives import Hint
from limbeck.papers import gpusq_vit as module


@pytest.fixture
def small(tmp_path, monkeypatch):
    bed = dataclasses.replace(UNIT_PATCHES, train=96, validation=32, test=32, supervised_steps=2, teacher=(4, 16))
    monkeypatch.setattr(module, "BED", bed)
    store = Store(tmp_path / "store")
    return lambda: Run(0, "validation", store)


def test_every_arm_runs_and_takes_its_steps(small):
    for name, arm in module.paper.arms.items():
        run = small()
        steps = {} if name == "one_shot" else {"steps": 2}
        found = arm.run(run, **{**arm.candidates()[0], **steps})
        assert all(math.isfinite(value) for value in found.values())
        assert run.costs.get("steps", 0) == (0 if name in ("one_shot", "dense") else 4)


def test_the_pattern_is_there_after_every_step_and_stored(small, monkeypatch):
    seen, weights = [], []

    def looked(self):
        keep(self)
        for path in self.masks:
            fours = self.model.get_submodule(path).weight.detach().reshape(-1, 4)
            seen.append(int((fours == 0).sum(1).min()))

    keep = module.MaskKeeper.__call__
    monkeypatch.setattr(module.MaskKeeper, "__call__", looked)
    again = module.reweighted
    monkeypatch.setattr(module, "reweighted", lambda *given: weights.append(again(*given)) or weights[-1])
    monkeypatch.setattr(module, "measured", lambda run, model: {"model": model})
    model = module.compressed(small(), steps=2)["model"]
    assert len(seen) == 2 * 2 * 24 and min(seen) == 2
    layers = [m for m in model.modules() if hasattr(m, "weight_codes")]
    assert len(layers) == 24
    for layer in layers:
        assert ((layer.weight.reshape(-1, 4) != 0).sum(1) <= 2).all()
        assert layer.weight_codes.numel() * 8 == 3 * layer.weight.numel()
    (objective,) = weights
    factors = [weight for term, weight in objective.terms if isinstance(term, Hint)]
    assert sum(factors) == pytest.approx(2.0) and len(set(factors)) == 2
    assert torch.tensor([w for t, w in objective.terms if not isinstance(t, Hint)]).tolist() == [1.0, 1.0]
