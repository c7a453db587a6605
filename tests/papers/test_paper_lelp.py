"""LELP's paper file: its arms run, spend alike, and its task has two classes."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.lelp import BED, paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1), groups=BED.groups)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_there_are_two_classes():
    assert TINY.task().classes == ("0 2 4 6 8", "1 3 5 7 9")
