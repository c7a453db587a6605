"""MIX-KD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.mix_kd import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_two_teachers_were_trained(results):
    teachers = {name: [entry["digest"] for entry in run.store.used] for name, (_, run) in results.items()}
    plain, mixed = teachers["method"], teachers["mixed_teacher"]
    assert plain != mixed
    assert {name for name, found in teachers.items() if found == mixed} == {"mixed_teacher", "mixed_teacher_only"}


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
