"""RveRNet's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.rvernet import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=4, epochs=None)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_only_labels_need_no_teacher_and_tokens_cost_parameters(results):
    assert {name for name, (_, run) in results.items() if run.store.used} == {"method", "baseline", "soft_token"}
    sizes = {name: run.costs["parameters"] for name, (_, run) in results.items()}
    assert sizes["method"] == sizes["soft_token"] > sizes["baseline"] == sizes["control"]
