"""DMD2's arms run end to end on tiny beds."""

import math

import pytest

from limbeck.beds.diffusion import MixtureBed
from limbeck.experiments import Run, Store
from limbeck.papers import dmd2

TINY = MixtureBed(examples=256, width=16, blocks=2, steps=4, batch_size=32)
SETTINGS = {"beds": (TINY, TINY), "steps": (6, 6), "samples": 100}


@pytest.mark.parametrize("arm", sorted(dmd2.paper.arms))
def test_an_arm_runs(arm, tmp_path):
    given = dmd2.paper.arms[arm]
    run = Run(0, "validation", Store(tmp_path))
    metrics = given.run(run, **given.settings, **SETTINGS)
    assert math.isfinite(metrics["mmd"])
    assert run.costs["steps"] == 12


def test_the_composition_is_the_papers():
    arms = dmd2.paper.arms
    assert arms["baseline"].settings == {"critic_updates": 1, "adversarial": False}
    assert arms["method"].settings == {}  # the defaults: 5 critic updates and the head
    assert arms["four_steps"].settings["times"] == (999, 749, 499, 249)
