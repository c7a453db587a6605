"""PS-KD's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.ps_kd import _epochs, labels, paper, past

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


def test_the_share_grows_to_its_end_over_the_run():
    assert _epochs(TINY, TINY.config()) == TINY.training.epochs
    assert _epochs(TINY, TINY.config(steps=18)) == 2.0


def test_it_is_plain_training_in_the_first_epoch_and_no_more_after_it(tmp_path):
    runs = [Run(0, "validation", Store(tmp_path)) for _ in range(4)]
    assert past(runs[0], bed=TINY, steps=9) == labels(runs[1], bed=TINY, steps=9)
    assert past(runs[2], bed=TINY, steps=11) != labels(runs[3], bed=TINY, steps=11)
