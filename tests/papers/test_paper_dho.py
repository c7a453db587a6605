"""DHO's paper file: its arms run and spend alike, and the mixture is chosen where the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.dho import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1), train=100, teacher_train=1200)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3, unlabelled=200)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")


def test_all_but_the_control_have_the_same_teacher(results):
    used = {name: [entry["digest"] for entry in run.store.used] for name, (_, run) in results.items()}
    assert used.pop("control") == []
    assert len({tuple(found) for found in used.values()}) == 1


def test_the_mixture_is_noted(results):
    assert results["label_head"][1].notes == ["share 1.0, temperature 1.0"]
    assert results["method"][1].notes[0].startswith("share ")
