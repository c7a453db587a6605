"""BD-KD's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.bd_kd import paper

TINY = replace(DIGITS, training=replace(DIGITS.training, epochs=2))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    store, found = tmp_path_factory.mktemp("store"), {}
    for name, arm in paper.arms.items():
        run = Run(0, "validation", Store(store))
        found[name] = arm.run(run, **arm.candidates()[0], bed=TINY, steps=12), run
    return found


def test_every_arm_runs_and_spends_alike(results):
    assert all(math.isfinite(value) for found, _ in results.values() for value in found.values())
    assert all(row.metric in found for row in paper.compared for found, _ in results.values())
    for cost in ("steps", "samples", "parameters"):
        assert len({run.costs[cost] for _, run in results.values()}) == 1


def test_no_arm_needs_a_trained_teacher(results):
    assert all(run.store.used == [] for _, run in results.values())


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_a_fixed_mixture_weighs_both_sides_as_much_as_the_method_does_together():
    method, control = paper.method.settings, paper.control.settings
    assert control["delta"] == 1.0
    assert 2 * control["scale"] == 1.0 + 2.0
    assert "delta" not in method
