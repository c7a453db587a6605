"""PS-KD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers.ps_kd import _epochs, labels, paper, past

TINY = replace(DIGITS, training=replace(DIGITS.training, epochs=2))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=12)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_no_arm_needs_a_trained_teacher(results):
    assert all(run.store.used == [] for _, run in results.values())


def test_the_share_grows_to_its_end_over_the_run():
    assert _epochs(TINY, TINY.config()) == TINY.training.epochs
    assert _epochs(TINY, TINY.config(steps=18)) == 2.0


def test_it_is_plain_training_in_the_first_epoch_and_no_more_after_it(tmp_path):
    runs = [Run(0, "validation", Store(tmp_path)) for _ in range(4)]
    assert past(runs[0], bed=TINY, steps=9) == labels(runs[1], bed=TINY, steps=9)
    assert past(runs[2], bed=TINY, steps=11) != labels(runs[3], bed=TINY, steps=11)
