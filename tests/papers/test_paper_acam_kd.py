"""ACAM-KD's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest
from arms import run_arms

from limbeck.beds.segmentation import Network
from limbeck.datasets.load import data_folder, find_folder
from limbeck.papers.acam_kd import BED, paper

pytestmark = pytest.mark.skipif(
    find_folder("camvid") is None,
    reason=f"data set 'camvid' is not in {data_folder()} (set LIMBECK_DATA, or: make data)",
)
TINY = replace(
    BED, name="tiny", size=(12, 16), train=16, validation=4, test=4, student=Network((4, 4), stride=4),
    teacher=Network((8, 8)), teacher_training=replace(BED.teacher_training, steps=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=4)


def test_every_arm_runs_and_spends_alike(results):
    assert all(math.isfinite(value) for found, _ in results.values() for value in found.values())
    for cost in ("steps", "samples", "parameters"):  # masks and projectors are not kept
        assert len({run.costs[cost] for _, run in results.values()}) == 1


def test_masks_move_and_are_compared_with_each_other(results):
    for name in ("method", "control"):
        found, _ = results[name]
        assert 0 <= found["overlap"] <= 1
        assert found["change"] > 0
    assert "change" not in results["baseline"][0]


def test_arms_with_a_teacher_use_one_and_the_arms_differ(results):
    assert {name for name, (_, run) in results.items() if run.store.used} == {
        "method",
        "baseline",
        "control",
        "attention",
    }
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
