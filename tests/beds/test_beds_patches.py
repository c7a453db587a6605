"""The patch beds: teachers are shared, students repeat, negatives are negatives, and the reference reaches what it promises."""

from dataclasses import replace

import pytest
import torch

from limbeck.beds.patches import NEGATIVES, PATCHES, UNIT_PATCHES, Negative
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import Hint

TINY = replace(
    NEGATIVES, name="tiny", dataset="digits", size=8, patch=4, train=300, labelled=100, validation=50, test=50,
    teacher=(2, 16), student=(1, 8), masked_steps=2, supervised_steps=2, distilling_steps=2, tuning_steps=2,
)  # fmt: skip


def run(folder, seed=0):
    return Run(seed, "validation", Store(folder))


def test_a_student_is_distilled_tuned_and_counted(tmp_path):
    one = run(tmp_path)
    student = TINY.distil(one, TINY.new_student(one), Hint("blocks.0", "blocks.1"), TINY.masked(one))
    found = TINY.tuned(one, student)
    assert set(found) == {"accuracy", "loss", "calibration_error"}
    assert one.costs["steps"] == 4  # the teacher is no cost of the arm
    assert len(one.store.used) == 1


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(tmp_path):
    results = [TINY.reference(run(tmp_path, seed)) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_the_two_teachers_differ_and_are_shared(tmp_path):
    first, second = TINY.masked(run(tmp_path)), TINY.supervised(run(tmp_path))
    assert not torch.equal(first.patches.weight, second.patches.weight)
    assert torch.equal(TINY.masked(run(tmp_path, 1)).patches.weight, first.patches.weight)


def test_the_digest_tells_settings_apart():
    assert len({bed.digest() for bed in (TINY, replace(TINY, patch=2), replace(TINY, negatives=False))}) == 3


def test_networks_may_begin_with_unit_variance_and_a_teacher_is_tuned_once(tmp_path):
    bed = replace(TINY, unit_start=True, negatives=False)
    assert bed.network(1, 16).positions.std() > 0.7 > 10 * TINY.network(1, 16).positions.std()
    first, again = (bed.fine_tuned(run(tmp_path, seed)) for seed in (0, 1))
    masked = bed.masked(run(tmp_path))
    assert torch.equal(first.patches.weight, again.patches.weight)
    assert not torch.equal(first.patches.weight, masked.patches.weight)
    assert not torch.equal(masked.patches.weight, TINY.masked(run(tmp_path)).patches.weight)


def test_a_negative_turns_images_over():
    model, x = TINY.network(1, 8).eval(), torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(Negative(model)(x), model(-x))


@pytest.mark.slow
@pytest.mark.parametrize("bed", [PATCHES, UNIT_PATCHES, NEGATIVES], ids=lambda bed: bed.name)
def test_the_reference_reaches_what_it_promises(bed):
    found = bed.reference(Run(0, "test"))
    for metric, (low, high) in bed.expects.items():
        assert low <= found[metric] <= high, (metric, found[metric])
