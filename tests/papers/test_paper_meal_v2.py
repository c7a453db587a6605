"""MEAL V2's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.meal_v2 import MEAN, paper

TINY = replace(
    DIGITS,
    teacher_training=replace(DIGITS.teacher_training, epochs=1),
    training=replace(DIGITS.training, epochs=1),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, epochs=None, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_the_mean_is_of_three_teachers_and_all_but_one_arm_start_from_the_checkpoint(results):
    used = {name: len(run.store.used) for name, (_, run) in results.items()}
    assert used == {
        "method": 4, "baseline": 2, "control": 1, "labels_too": 4, "decay": 4, "scratch": 3, "discriminator": 4, "separable": 4,
    }  # fmt: skip


def test_the_arms_differ(results):
    losses = {name: found["loss"] for name, (found, _) in results.items()}
    assert len(set(losses.values())) >= len(paper.arms) - 2  # weight decay and discriminator need more steps to show
    assert MEAN.temperature == 1.0
