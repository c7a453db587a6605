"""NKD's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.nkd import paper

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
    assert all(paper.metric in found for found, _ in results.values())
    assert {run.costs["steps"] for _, run in results.values()} == {2}
    assert {run.costs["samples"] for _, run in results.values()} == {64}
    assert len({run.costs["parameters"] for _, run in results.values()}) == 1  # the weak classifier is not kept


def test_arms_with_a_teacher_use_one_and_the_others_none(results):
    taught = {name for name, (_, run) in results.items() if run.store.used}
    assert taught == {"method", "baseline", "decoupled"}


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
