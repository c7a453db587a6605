import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import DataError, UsageError
from limbeck.tasks import ImageClassification
from limbeck.tasks.base import IGNORED, cross_entropy, generator, subset, token_losses


@pytest.fixture(scope="module")
def digits():
    return ImageClassification("digits")


def same(left, right):
    return left.keys() == right.keys() and all(
        torch.equal(v, right[k]) if isinstance(v, torch.Tensor) else v == right[k] for k, v in left.items()
    )


def test_file_order_and_every_example_once(digits):
    index = torch.cat([b["index"] for b in digits.batches("validation", 50)])
    assert torch.equal(index, torch.arange(179))
    shuffled = torch.cat([b["index"] for b in digits.batches("validation", 50, seed=3)])
    assert not torch.equal(shuffled, index) and torch.equal(shuffled.sort().values, index)


@pytest.mark.parametrize("augment", [False, True])
def test_numbers_are_a_function_of_seed_and_epoch(digits, augment):
    def first(seed, epoch):
        return next(digits.batches("train", 32, seed=seed, epoch=epoch, augment=augment))

    assert same(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0)["index"], first(1, 0)["index"])
    assert not torch.equal(first(0, 0)["index"], first(0, 1)["index"])


def test_global_randomness_is_neither_read_nor_moved(digits):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    left = list(digits.batches("validation", 64, seed=1, augment=True))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    assert all(map(same, left, digits.batches("validation", 64, seed=1, augment=True)))


def test_augmentation_differs_between_batches_and_epochs():
    # the same example again and again: only the draws can differ
    task = ImageClassification("digits", crop=2)
    image, _ = task._data["train"]
    draws = [
        task._examples("train", torch.zeros(8).long(), generator(0, e, "augment", n)) for e in (0, 1) for n in (0, 1)
    ]
    assert len({tuple(d["pixel_values"].flatten().tolist()) for d in draws}) == 4
    assert image.dtype == torch.uint8


@pytest.mark.parametrize("skip", [0, 1, 5, 20, 100])
def test_skipping_equals_an_uninterrupted_run(digits, skip):
    whole = list(digits.batches("train", 64, seed=4, epoch=2, augment=True))
    resumed = list(digits.batches("train", 64, seed=4, epoch=2, augment=True, skip=skip))
    assert len(resumed) == max(len(whole) - skip, 0) and all(map(same, whole[skip:], resumed))


def test_limit_is_the_same_subset_for_every_seed_and_keeps_all_classes(digits):
    index = [
        torch.cat([b["index"] for b in digits.batches("train", 16, seed=s, limit=100)]).sort().values for s in (0, 1)
    ]
    assert torch.equal(*index) and len(index[0]) == 100
    assert torch.equal(index[0], torch.cat([b["index"] for b in digits.batches("train", 16, limit=100)]))
    assert torch.equal(subset(1000, 4), torch.tensor([0, 250, 500, 750]))
    assert torch.equal(subset(3, 10), torch.arange(3))


def test_augmented_batches_carry_their_epoch(digits):
    assert next(digits.batches("train", 4, seed=0, epoch=7, augment=True))["epoch"] == 7
    assert "epoch" not in next(digits.batches("train", 4, seed=0, epoch=7))


def test_bad_arguments_fail_before_the_first_batch(digits):
    with pytest.raises(DataError, match=r"no split 'vali'.*'validation'"):
        digits.batches("vali", 8)
    for arguments in ({"batch_size": 0}, {"batch_size": 8, "limit": 0}, {"batch_size": 8, "skip": -1}):
        with pytest.raises(UsageError, match="must be a whole number"):
            digits.batches("train", **arguments)
    with pytest.raises(UsageError, match="need a seed"):
        digits.batches("train", 8, augment=True)


def test_cross_entropy_is_the_mean_over_what_counts():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, 1, IGNORED, 2], [IGNORED] * 4, [4, 4, 3, IGNORED]])
    counted = labels != IGNORED
    expected = F.cross_entropy(logits[counted], labels[counted])
    made = cross_entropy(logits, labels)
    assert torch.allclose(made, expected)
    made.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, counted)


def test_nothing_counts_gives_zero_not_nan():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2,), IGNORED))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros(2, 3))


def test_a_label_beyond_the_models_classes_is_named():
    with pytest.raises(UsageError, match="label 31 is no class of a model with 10 outputs"):
        cross_entropy(torch.zeros(2, 10), torch.tensor([3, 31]))


def test_sample_weights():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    each, _ = token_losses(logits, labels)
    weight = torch.tensor([1.0, 0.0, 3.0, 0.5])
    assert torch.allclose(cross_entropy(logits, labels, weight), (each * weight).sum() / 4.5)
    blocks = torch.randn(2, 4, 3)
    tokens = torch.tensor([[0, 1, IGNORED, IGNORED], [2, 1, 0, 0]])
    each = token_losses(blocks, tokens)[0]
    expected = (each[0].sum() * 2 + each[1].sum()) / (2 * 2 + 4)
    assert torch.allclose(cross_entropy(blocks, tokens, torch.tensor([2.0, 1.0])), expected)


def test_probabilities_as_labels():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.allclose(cross_entropy(logits, F.one_hot(labels, 3).float()), cross_entropy(logits, labels))


def test_half_precision_and_extremes():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    assert cross_entropy(logits, torch.tensor([0, 0])).item() == pytest.approx(1e4)
    assert cross_entropy(torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2).long()).item() == pytest.approx(
        math.log(8)
    )


def test_labels_that_would_broadcast_are_refused():
    with pytest.raises(UsageError, match="do not fit"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4, 1).long())
    with pytest.raises(UsageError, match="probabilities"):
        cross_entropy(torch.zeros(4, 3), torch.zeros(4))


def test_generators_differ_by_every_part_of_the_key():
    keys = [
        (0, 0, "order"),
        (1, 0, "order"),
        (0, 1, "order"),
        (0, 0, "augment", 0),
        (0, 0, "augment", 1),
        (10, 0, "order"),
    ]
    assert len({torch.rand(1, generator=generator(*key)).item() for key in keys}) == len(keys)
