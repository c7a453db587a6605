"""ProC-KD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS, Network
from limbeck.papers.proc_kd import BED, SOURCE, paper

TINY = replace(DIGITS, name="tiny", only=(5, 6, 7, 8, 9), student=Network(8, 2), train=20)
LENDER = replace(
    DIGITS, only=(0, 1, 2, 3, 4), teacher=Network(8, 4), teacher_training=replace(DIGITS.teacher_training, epochs=1)
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, source=LENDER, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)  # the same student with the same prototypes everywhere


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_teacher_and_student_share_no_class():
    assert not set(SOURCE.only) & set(BED.only) and len(SOURCE.only) == len(BED.only) == 5
    assert TINY.task().classes == tuple("56789") and LENDER.task().classes == tuple("01234")
