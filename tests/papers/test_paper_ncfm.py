"""NCFM's arms run end to end on few images."""

import dataclasses

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments import Run, Store
from limbeck.papers import ncfm


@pytest.mark.parametrize("arm", sorted(ncfm.paper.arms))
def test_an_arm_runs(arm, tmp_path, monkeypatch):
    bed = dataclasses.replace(DIGITS, train=120)
    network, few = ncfm.network, ncfm.pairs
    monkeypatch.setattr(ncfm, "network", lambda seed: network(seed, size=8))
    monkeypatch.setattr(ncfm, "pairs", lambda run, task: few(run, task, epochs=1))
    monkeypatch.setattr(ncfm, "PAIRS", 1)
    monkeypatch.setattr(ncfm, "COUNT", 16)
    run = Run(0, "validation", Store(tmp_path))
    metrics = ncfm.condensed(run, ncfm.paper.arms[arm].settings["metric"], 0.01, 2, 3, 4, bed, 120)
    assert 0 <= metrics["accuracy"] <= 1
    assert run.costs["steps"] == 4 and run.costs["bytes"] == 20 * 64 * 4


def test_only_the_metric_differs():
    arms = ncfm.paper.arms
    assert {name: arm.settings["metric"] for name, arm in arms.items()} == {
        "method": "adversarial",
        "baseline": "mean",
        "control": None,
        "gaussian": "gaussian",
    }
