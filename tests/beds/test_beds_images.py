"""The image beds: the set-up is sound, the same seed gives the same numbers, and the reference reaches what it promises."""

from dataclasses import replace

import pytest
import torch

from limbeck.beds.images import CIFAR10, CIFAR10_FEW, DIGITS, MNIST, MNIST_FEW, MNIST_REGIONS, MNIST_TAIL
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.papers import dho, lelp, ssld

BEDS = {
    "mnist tail": MNIST_TAIL,
    "regions": MNIST_REGIONS,
    "digits": DIGITS,
    "mnist": MNIST,
    "mnist few": MNIST_FEW,
    "cifar10": CIFAR10,
    "cifar10 few": CIFAR10_FEW,
    "mnist parity": lelp.BED,
    "mnist, 500 for teacher and student": ssld.BED,
    "mnist, 100 labels": dho.BED,
}
TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


def run(folder, seed=0):
    return Run(seed, "validation", Store(folder))


def test_a_student_is_distilled_and_measured(tmp_path):
    one = run(tmp_path)
    found = TINY.distil(one, CrossEntropy() + SoftTargets(), steps=3)
    assert set(found) == {"accuracy", "loss", "calibration_error"}
    assert one.costs["steps"] == 3
    assert one.costs["samples"] == 3 * TINY.training.batch_size
    assert len(one.store.used) == 1  # the teacher; it is no cost of the arm


def test_the_same_seed_gives_the_same_numbers_and_another_one_others(tmp_path):
    results = [TINY.distil(run(tmp_path, seed), CrossEntropy(), steps=3) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_students_of_one_seed_begin_alike_and_of_another_differ(tmp_path):
    first, same, other = (TINY.new_student(run(tmp_path, seed)).fc.weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_teacher_is_shared_and_does_not_depend_on_the_seed(tmp_path):
    first, second = (TINY.trained_teacher(run(tmp_path, seed)) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_the_digest_tells_settings_apart():
    others = [
        replace(DIGITS, train=200),
        replace(DIGITS, student=DIGITS.teacher),
        replace(DIGITS, training=TINY.config(epochs=1)),
    ]
    assert len({bed.digest() for bed in (DIGITS, *others)}) == 4
    assert replace(DIGITS, expects={}).digest() == DIGITS.digest()


def test_a_long_tail_is_measured_at_both_ends(tmp_path):
    bed = replace(TINY, imbalance=10.0)
    found = bed.distil(run(tmp_path), CrossEntropy(), steps=3)
    assert set(found) == {"accuracy", "loss", "calibration_error", "rare_accuracy", "frequent_accuracy"}
    counts = bed.task().class_counts()
    assert counts[0] > 5 * counts[-1]
    constant = torch.nn.Module()
    constant.forward = lambda pixel_values: torch.eye(10)[[0] * len(pixel_values)]  # always the most frequent class
    measured = bed.measure(run(tmp_path), constant)
    assert (measured["rare_accuracy"], measured["frequent_accuracy"]) == (0.0, pytest.approx(1 / 3))
    assert bed.digest() != TINY.digest()


def test_a_trained_student_is_a_starting_point_of_its_seed(tmp_path):
    bed = replace(TINY, training=replace(TINY.training, epochs=1))
    first, again, other = (bed.trained_student(run(tmp_path, seed)).fc.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_members_of_an_ensemble_differ_in_their_seed_and_teachers_in_their_objective(tmp_path):
    one, two, smooth, flat = (
        TINY.trained_teacher(run(tmp_path), **how).fc.weight
        for how in ({}, {"seed": 1}, {"objective": CrossEntropy(label_smoothing=0.1)}, {"radius": 0.05})
    )
    assert not any(torch.equal(one, other) for other in (two, smooth, flat))


@pytest.mark.slow
@pytest.mark.parametrize("bed", BEDS.values(), ids=BEDS)
def test_the_reference_reaches_what_the_bed_expects(bed, tmp_path):
    found = bed.reference(Run(0, "test", Store(tmp_path)))
    for metric, (lowest, highest) in bed.expects.items():
        assert lowest <= found[metric] <= highest, (metric, found)
