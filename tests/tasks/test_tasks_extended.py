"""A task extended by unlabelled examples: every example once, its own labels, and the same numbers after a resume."""

import pytest
import torch
from torch import nn

from limbeck.errors import DataError, UsageError
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.tasks import CustomTask, ExtendedTask
from limbeck.training import Distil, Trainer, TrainingConfig


def task(offset, count=12, width=3):
    x = offset + torch.arange(count * width).float().view(count, width)
    y = torch.arange(count) % 2
    return CustomTask(
        {"train": (x, y), "validation": (x, y), "test": (x[:4], y[:4])}, classes=2, version=f"{offset} {width}"
    )


BOTH = ExtendedTask(task(0), task(1000), torch.tensor([5, 1, 9]))


def test_train_is_both_and_the_rest_is_the_first():
    assert [BOTH.size(split) for split in BOTH.splits()] == [15, 12, 4]
    whole = next(BOTH.batches("train", 15))
    assert whole["pixel_values"][12:, 0].tolist() == [1015.0, 1003.0, 1027.0]
    assert whole["labels"].tolist() == [0, 1] * 6 + [-100] * 3
    assert torch.equal(next(BOTH.batches("test", 4))["pixel_values"], next(task(0).batches("test", 4))["pixel_values"])


def test_shuffled_batches_hold_every_example_under_its_index():
    whole = next(BOTH.batches("train", 15))
    seen = []
    for batch in BOTH.batches("train", 4, seed=3, epoch=1):
        assert torch.equal(batch["pixel_values"], whole["pixel_values"][batch["index"]])
        assert torch.equal(batch["labels"], whole["labels"][batch["index"]])
        seen += batch["index"].tolist()
    assert sorted(seen) == list(range(15))
    skipped = list(BOTH.batches("train", 4, seed=3, epoch=1, skip=2))
    assert [b["index"].tolist() for b in skipped] == [seen[8:12], seen[12:]]


def test_pools_add_up_and_digests_tell_them_apart():
    twice = ExtendedTask(BOTH, task(5000))
    assert twice.size("train") == 27
    assert next(twice.batches("train", 27))["pixel_values"][15, 0] == 5000
    digests = {t.digest() for t in (BOTH, twice, task(0), ExtendedTask(task(0), task(1000), torch.tensor([5, 1, 8])))}
    assert len(digests) == 4
    assert BOTH.digest() == ExtendedTask(task(0), task(1000), torch.tensor([5, 1, 9])).digest()


def test_training_on_it_counts_labels_where_there_are_some():
    config = TrainingConfig(steps=3, batch_size=5, learning_rate=0.01)
    labels_only = Distil(nn.Linear(3, 2), None, CrossEntropy())
    Trainer(config, progress=False).run(labels_only, BOTH)
    everything = Distil(nn.Linear(3, 2), nn.Linear(3, 2), SoftTargets(positions="all") + CrossEntropy())
    history = Trainer(config, progress=False).run(everything, BOTH)
    assert history.samples == 15
    assert all(entry["loss"] > 0 for entry in history.steps)


def test_labelled_examples_repeat():
    often = ExtendedTask(task(0), task(1000), torch.tensor([5, 1, 9]), repeat=2)
    assert [often.size(split) for split in often.splits()] == [27, 12, 4]
    whole, once = next(often.batches("train", 27)), next(BOTH.batches("train", 15))
    first = once["pixel_values"][:12]
    assert torch.equal(whole["pixel_values"], torch.cat([first, first, once["pixel_values"][12:]]))
    assert whole["labels"].tolist() == [0, 1] * 12 + [-100] * 3
    assert often.digest() != BOTH.digest()


def test_refusals():
    with pytest.raises(UsageError, match="positions"):
        ExtendedTask(task(0), task(1), torch.tensor([12]))
    with pytest.raises(UsageError, match="repeat"):
        ExtendedTask(task(0), task(1), repeat=0)
    with pytest.raises(DataError, match="same sizes"):
        next(ExtendedTask(task(0), task(1, width=4)).batches("train", 20))
