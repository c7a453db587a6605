"""The arms of variational score distillation run end to end on tiny beds."""

import math

import pytest
import torch

from limbeck.beds.diffusion import MixtureBed
from limbeck.experiments import Run, Store
from limbeck.papers import variational_score_distillation as vsd

TINY = MixtureBed(examples=256, width=16, blocks=2, steps=4, batch_size=32)
SETTINGS = {"beds": (TINY, TINY), "counts": (16, 16), "steps": (5, 5)}


@pytest.mark.parametrize("arm", sorted(vsd.paper.arms))
def test_an_arm_runs(arm, tmp_path):
    given = vsd.paper.arms[arm]
    run = Run(0, "validation", Store(tmp_path))
    assert math.isfinite(given.run(run, **given.settings, **SETTINGS)["mmd"])
    assert run.costs["steps"] == 10


def test_the_arms_differ_in_their_fake_score_alone():
    arms = vsd.paper.arms
    assert arms["method"].settings == {}
    assert [arms[name].settings["fake_score"] for name in ("baseline", "control")] == ["dirac", "frozen"]


def test_spread_inside_classes():
    images, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 1.0], [5.0, 1.0]]), torch.tensor([0, 0, 1, 1])
    assert vsd.spread_inside(images, labels) == 1.0  # variance 2 in class 0, none in class 1
