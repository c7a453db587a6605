"""DeiT-LT's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.objectives import HardTargets
from limbeck.papers.deit_lt import objective, paper

TINY = replace(DIGITS, imbalance=10.0, teacher_train=None, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, epochs=6)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_both_heads_are_measured_and_the_teachers_differ(results):
    assert {"class_rare_accuracy", "token_frequent_accuracy"} <= results["method"][0].keys()
    used = {name: [entry["digest"] for entry in run.store.used] for name, (_, run) in results.items()}
    assert used["control"] == used["adjusted"] == []
    assert used["flat"] not in (used["method"], used["baseline"])
    assert used["method"] == used["balanced"] != used["baseline"] == used["reweighted"]


def test_the_weights_act_on_the_token_from_the_change_on():
    counts = (50, 5)
    labels, plain, weighted = (term for term, _ in objective(counts, 11).terms)
    assert [w for _, w in objective(counts, 11).terms] == [0.5] * 3
    assert (labels.student, plain.end, weighted.begin) == ("head", 11, 11)
    assert plain.objective.objective == HardTargets()
    first, second = weighted.objective.objective.weights
    assert first < 1 < second
    assert all(term.objective.student == "distillation_head" for term in (plain, weighted))
    assert len(objective(counts, None).terms) == 2
