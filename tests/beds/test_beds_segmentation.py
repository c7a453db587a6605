"""The segmentation bed: its teacher is shared, students repeat, and the reference reaches what it promises."""

from dataclasses import replace

import pytest
import torch

from limbeck.beds.segmentation import CAMVID, Network
from limbeck.datasets.load import data_folder, find_folder
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import AtPlaces, CrossEntropy, Hint, SoftTargets

pytestmark = pytest.mark.skipif(
    find_folder("camvid") is None,
    reason=f"data set 'camvid' is not in {data_folder()} (set LIMBECK_DATA, or: make data)",
)
TINY = replace(
    CAMVID, name="tiny", size=(12, 16), train=8, validation=4, test=4, student=Network((4, 4)), teacher=Network((8, 8)),
    training=replace(CAMVID.training, steps=2), teacher_training=replace(CAMVID.teacher_training, steps=2),
)  # fmt: skip


def run(folder, seed=0):
    return Run(seed, "validation", Store(folder))


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(tmp_path):
    results = [TINY.reference(run(tmp_path, seed)) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert set(results[0]) == {"mean_iou", "accuracy", "class_accuracy", "loss", "teacher_mean_iou"}


def test_a_student_is_taught_by_the_shared_teacher_and_counted(tmp_path):
    one = run(tmp_path)
    TINY.distil(one, AtPlaces(CrossEntropy() + SoftTargets(2.0)) + 0.1 * Hint("up.0"))
    assert one.costs["steps"] == 2 and one.costs["samples"] == 16 and len(one.store.used) == 1
    again = TINY.trained_teacher(run(tmp_path, 1))
    assert torch.equal(again.head.weight, TINY.trained_teacher(one).head.weight)


def test_the_digest_tells_settings_apart():
    assert len({bed.digest() for bed in (TINY, replace(TINY, crop=0), replace(TINY, train=4))}) == 3


@pytest.mark.slow
def test_the_reference_reaches_what_it_promises():
    found = CAMVID.reference(Run(0, "test"))
    for metric, (low, high) in CAMVID.expects.items():
        assert low <= found[metric] <= high, (metric, found[metric])
