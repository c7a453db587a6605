"""ND loss's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.norm_direction import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    store, found = tmp_path_factory.mktemp("store"), {}
    for name, arm in paper.arms.items():
        run = Run(0, "validation", Store(store))
        found[name] = arm.run(run, **arm.candidates()[0], bed=TINY, steps=2), run
    return found


def test_every_arm_runs_and_spends_alike(results):
    assert all(math.isfinite(value) for found, _ in results.values() for value in found.values())
    for cost, value in (("steps", 2), ("samples", 64)):
        assert {run.costs[cost] for _, run in results.values()} == {value}
    assert len({run.costs["parameters"] for _, run in results.values()}) == 1  # the projector is not kept


def test_the_geometry_is_measured_where_there_is_a_projector(results):
    for name in ("method", "cosine"):
        found, _ = results[name]
        assert found["norm"] > 0
        assert -1 <= found["cosine"] <= 1
    assert "norm" not in results["baseline"][0]


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
