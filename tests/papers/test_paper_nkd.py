"""NKD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.nkd import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)  # the weak classifier is not among the parameters
    assert {run.costs["steps"] for _, run in results.values()} == {2}
    assert {run.costs["samples"] for _, run in results.values()} == {64}


def test_arms_with_a_teacher_use_one_and_the_others_none(results):
    taught = {name for name, (_, run) in results.items() if run.store.used}
    assert taught == {"method", "baseline", "decoupled"}


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
