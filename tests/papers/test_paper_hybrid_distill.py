"""Hybrid Distill's paper file: its arms run, spend alike, and each term reads its own teacher."""

import pytest
from arms import assert_alike, run_arms, tiny_patches

from limbeck.beds.patches import PATCHES
from limbeck.inference import ThinnedTokens
from limbeck.papers.hybrid_distill import DROPS, feature, paper, relations

TINY = tiny_patches(PATCHES, supervised_steps=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert {run.costs["steps"] for _, run in results.values()} == {4}
    assert len({found["diversity"] for found, _ in results.values()}) == len(paper.arms)


def test_features_come_from_the_first_teacher_and_relations_from_the_second():
    assert feature(2, 5).reads.teacher == {"0.blocks.5"}
    assert relations(1, 3, 4).reads.teacher == {f"1.blocks.3.attention.{n}" for n in ("query", "key", "value")}
    assert feature(2, 5).reads.student == {"model.blocks.2", "kept.2"}


def test_half_of_the_patches_are_masked():
    assert ThinnedTokens(PATCHES.network(*PATCHES.student), DROPS).left == [13, 10, 8]
