"""DMAE's paper file: its arms run, spend alike, and what is aligned are middle layers on visible patches."""

import pytest
from arms import assert_alike, run_arms, tiny_patches

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.papers.dmae import alignment, paper

TINY = tiny_patches(UNIT_PATCHES, tuning_steps=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert {run.costs["steps"] for _, run in results.values()} == {4}
    assert {name for name, (_, run) in results.items() if not run.store.used} == {"control"}
    assert all(found["step_seconds"] > 0 for found, _ in results.values())


def test_layers_at_three_quarters_of_the_depth_are_aligned():
    hint = alignment(TINY)
    assert (hint.student, hint.teacher, hint.loss, hint.normalize) == ("model.blocks.1", "model.blocks.2", "l1", True)
    assert alignment(UNIT_PATCHES).reads.teacher == {"model.blocks.3"}
