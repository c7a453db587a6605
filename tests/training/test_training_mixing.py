"""Mixup, CutMix and label smoothing against the formulas, written out element by element."""

import pytest
import torch
from torch.nn import functional

from limbeck.errors import UsageError
from limbeck.training import TrainingConfig
from limbeck.training.mixing import cutmix, mix_batch, mixing_weight, mixup, partial_weights, soft_labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_smoothing_equals_torch_cross_entropy():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    expected = functional.cross_entropy(logits, labels, label_smoothing=0.3)
    assert torch.allclose(functional.cross_entropy(logits, soft_labels(labels, 4, 0.3)), expected)


@pytest.mark.parametrize("labels", [torch.tensor([0, 4]), torch.tensor([0, -100]), torch.zeros(2, 3, dtype=torch.long)])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(UsageError, match="labels"):
        soft_labels(labels, 4, 0.1)


def test_mixup_element_by_element():
    images, labels = torch.randn(3, 1, 2, 2), torch.eye(3)
    order = torch.tensor([2, 0, 1])
    mixed, targets = mixup(images, labels, 0.3, order)
    for i, j in enumerate(order.tolist()):
        assert torch.allclose(mixed[i], 0.3 * images[i] + 0.7 * images[j])
        assert torch.allclose(targets[i], 0.3 * labels[i] + 0.7 * labels[j])


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.0), (0.99, 0.2)])
def test_cutmix_labels_follow_the_area_that_was_pasted(centre):
    images = torch.stack([torch.full((1, 8, 10), float(i)) for i in range(3)])
    order = torch.tensor([1, 2, 0])
    mixed, targets = cutmix(images, torch.eye(3), 0.6, order, centre)
    for i, j in enumerate(order.tolist()):
        share = float((mixed[i] == j).float().mean())
        assert 0 < share < 1
        assert set(mixed[i].unique().tolist()) == {float(i), float(j)}
        assert targets[i, j].item() == pytest.approx(share)
        assert targets[i, i].item() == pytest.approx(1 - share)
    if centre == (0.5, 0.5):  # sqrt(0.4) of 8 and 10: a box of 5 by 6
        assert targets[0, 1].item() == pytest.approx(30 / 80)


def test_mixing_weight_is_beta_distributed():
    draws = torch.tensor([mixing_weight(0.4, generator(seed)) for seed in range(3000)])
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(a, a)


def test_partial_mixup_leaves_the_other_examples_alone():
    weights = torch.cat([partial_weights(1.0, 40, 0.1, generator(seed)) for seed in range(200)])
    assert all(int((row < 1).sum()) == 4 for row in weights.view(200, 40))
    drawn = weights[weights < 1]
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.var().item() == pytest.approx(1 / 12, abs=0.01)  # uniform
    images, labels = torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    batch = {"pixel_values": images, "labels": labels}
    mixed = mix_batch(batch, 3, generator(1), mixup_alpha=1.0, mixup_share=0.25)
    changed = (mixed["pixel_values"] != images).flatten(1).any(1)
    assert 1 <= int(changed.sum()) <= 2  # an example may be mixed with itself
    hard = functional.one_hot(labels, 3).float()
    assert torch.equal(mixed["labels"][~changed], hard[~changed])
    assert torch.allclose(mixed["labels"].sum(1), torch.ones(8))


def test_mixup_with_a_weight_for_each_example():
    images, labels, order = torch.randn(3, 1, 2, 2), torch.eye(3), torch.tensor([2, 0, 1])
    weights = torch.tensor([0.3, 1.0, 0.6])
    mixed, targets = mixup(images, labels, weights, order)
    for i, w in enumerate(weights.tolist()):
        one, label = mixup(images, labels, w, order)
        torch.testing.assert_close(mixed[i], one[i])
        torch.testing.assert_close(targets[i], label[i])


def test_a_full_share_is_plain_mixup_and_digests_of_old_configs_stay():
    batch = {"pixel_values": torch.randn(8, 1, 4, 4), "labels": torch.arange(8) % 3}
    first, second = (mix_batch(batch, 3, generator(2), mixup_alpha=0.7, **more) for more in ({}, {"mixup_share": 1.0}))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert "mixup_share" not in TrainingConfig(steps=1, mixup=1.0).identity()
    partial = TrainingConfig(steps=1, mixup=1.0, mixup_share=0.1)
    assert TrainingConfig.from_json(partial.to_json()) == partial
    for wrong in ({"mixup_share": 0.5}, {"mixup": 1.0, "mixup_share": 0.0}, {"mixup": 1.0, "mixup_share": 1.5}):
        with pytest.raises(UsageError, match="mixup_share"):
            TrainingConfig(steps=1, **wrong)


def test_batch_is_a_function_of_the_generator_and_keeps_the_rest():
    batch = {"pixel_values": torch.randn(4, 1, 4, 4), "labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(4)}
    first = mix_batch(batch, 3, generator(5), mixup_alpha=0.5, cutmix_alpha=1.0, label_smoothing=0.1)
    second = mix_batch(batch, 3, generator(5), mixup_alpha=0.5, cutmix_alpha=1.0, label_smoothing=0.1)
    assert all(torch.equal(first[name], second[name]) for name in batch)
    assert torch.equal(first["index"], batch["index"])
    assert torch.allclose(first["labels"].sum(1), torch.ones(4))
    assert batch["labels"].dtype == torch.long


def test_both_kinds_are_drawn_when_both_are_on():
    batch = {"pixel_values": torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 6, 6), "labels": torch.arange(4)}
    pasted = 0
    for seed in range(40):
        mixed = mix_batch(batch, 4, generator(seed), mixup_alpha=1.0, cutmix_alpha=1.0)["pixel_values"]
        pasted += bool((mixed == mixed.round()).all())
    assert 8 < pasted < 32


def test_one_example_is_left_alone_and_text_is_refused():
    batch = {"pixel_values": torch.ones(1, 1, 2, 2), "labels": torch.tensor([1])}
    assert torch.equal(mix_batch(batch, 2, generator(), mixup_alpha=1.0)["pixel_values"], batch["pixel_values"])
    with pytest.raises(UsageError, match="pixel_values"):
        mix_batch({"input_ids": torch.ones(2, 3), "labels": torch.tensor([1, 0])}, 2, generator(), mixup_alpha=1.0)
