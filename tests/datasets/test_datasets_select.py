"""Selection from a pool: the surest examples of each class, and no copies."""

import pytest
import torch

from limbeck.datasets import highest_per_class, without_copies
from limbeck.errors import UsageError


def test_each_class_gives_its_highest_and_nobody_comes_twice():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.3, 0.6], [0.2, 0.7, 0.1], [0.1, 0.6, 0.2], [0.0, 0.0, 0.0]])
    assert highest_per_class(scores, 1).tolist() == [0, 1, 2]
    assert highest_per_class(scores, 2).tolist() == [0, 1, 2, 3]  # 0 and 1 are high in two classes
    assert highest_per_class(scores, 99).tolist() == [0, 1, 2, 3, 4]


def test_the_order_of_the_pool_does_not_matter():
    scores, order = torch.rand(50, 4), torch.randperm(50)
    chosen = highest_per_class(scores[order], 5)
    assert sorted(order[chosen].tolist()) == highest_per_class(scores, 5).tolist()


def test_copies_are_left_out_also_brighter_and_slightly_changed_ones():
    draw = torch.Generator().manual_seed(0)
    pool, seen = (torch.randint(0, 255, (n, 1, 8, 8), generator=draw, dtype=torch.uint8) for n in (10, 6))
    pool[3], pool[7] = seen[2], (seen[5].float() * 0.5 + 60).to(torch.uint8)
    assert without_copies(pool, seen, chunk=4).tolist() == [0, 1, 2, 4, 5, 6, 8, 9]


@pytest.mark.parametrize(
    "call",
    [
        lambda: highest_per_class(torch.rand(3, 2), 0),
        lambda: highest_per_class(torch.rand(3), 1),
        lambda: without_copies(torch.rand(3, 4), torch.rand(2, 5)),
        lambda: without_copies(torch.rand(3, 4), torch.rand(2, 4), 0.0),
    ],
)
def test_refusals(call):
    with pytest.raises(UsageError):
        call()
