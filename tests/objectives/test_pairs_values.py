"""Paired contrast against the plain double sum."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import PairedContrast
from limbeck.signals import Signals


def loss(pairs, scale=10.0, **batch):
    return PairedContrast("exit", scale)(Signals({"exit": pairs}), Signals({}), batch).value


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_it_is_the_mean_of_both_directions(scale):
    pairs = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    first, second = ([row / row.norm() for row in pairs[:, side]] for side in (0, 1))
    total = 0.0
    for i in range(5):
        there = torch.stack([scale * first[i] @ second[j] for j in range(5)])
        back = torch.stack([scale * first[j] @ second[i] for j in range(5)])
        total = total - 0.5 * (there[i] - there.exp().sum().log() + back[i] - back.exp().sum().log())
    found = loss(pairs, scale)
    torch.testing.assert_close(found, total / 5)
    torch.testing.assert_close(*(torch.autograd.grad(v, pairs, retain_graph=True)[0] for v in (found, total / 5)))


def test_swapping_the_sides_changes_nothing_and_lengths_do_not_count():
    pairs = torch.randn(4, 2, 3)
    torch.testing.assert_close(loss(pairs.flip(1)), loss(pairs))
    torch.testing.assert_close(loss(pairs * torch.rand(4, 2, 1).add(0.1)), loss(pairs))


def test_pairs_of_weight_nothing_are_no_negatives_and_one_pair_is_refused():
    pairs = torch.randn(4, 2, 3)
    torch.testing.assert_close(loss(pairs, sample_weight=torch.tensor([1.0, 0, 1, 0])), loss(pairs[[0, 2]]))
    assert float(loss(pairs, sample_weight=torch.tensor([1.0, 0, 0, 0]))) == 0
    for wrong in (pairs[:1], pairs[:, 0], torch.randn(4, 3, 3)):
        with pytest.raises(UsageError, match="two pairs or more"):
            loss(wrong)
