"""BD-KD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.bd_kd import paper

TINY = replace(DIGITS, training=replace(DIGITS.training, epochs=2))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=12)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_no_arm_needs_a_trained_teacher(results):
    assert all(run.store.used == [] for _, run in results.values())


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_a_fixed_mixture_weighs_both_sides_as_much_as_the_method_does_together():
    method, control = paper.method.settings, paper.control.settings
    assert control["delta"] == 1.0
    assert 2 * control["scale"] == 1.0 + 2.0
    assert "delta" not in method
