"""LSSKD's paper file: its arms run, spend alike, and are what the paper says."""

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.lsskd import joint, paper


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=DIGITS, steps=12)


def test_every_arm_runs_and_nothing_is_added_to_the_model(results):
    assert_alike(paper, results)  # the parameters too
    assert all(run.store.used == [] for _, run in results.values())
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_every_stage_answers_class_and_rotation():
    (_, _), (layered, _) = joint(0.3, 0.1).terms
    assert (layered.classes, layered.labels, layered.logits_weight) == (40, "joint_labels", 0.3)
    assert layered.layers == ("layer1", "layer2", "layer3")
