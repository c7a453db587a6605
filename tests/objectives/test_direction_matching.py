"""Direction matching, against plain loops."""

import math

import pytest
import torch

from limbeck.objectives import Hint, TokenRelations
from limbeck.signals import Signals


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relations(x, heads, counts):
    """Products over sqrt(d) of every pair of tokens that count, with the square root of the pair's weight, in one list."""
    found, width = [], x.shape[2] // heads
    for b, (mask, weight) in enumerate(counts):
        for h in range(heads):
            part = x[b, :, h * width : (h + 1) * width]
            for i in range(x.shape[1]):
                for j in range(x.shape[1]):
                    if mask[i] and mask[j]:
                        found.append(math.sqrt(weight) * float(part[i] @ part[j]) / math.sqrt(width))
    return found


def states(x, counts):
    return [
        math.sqrt(weight) * float(value)
        for b, (mask, weight) in enumerate(counts)
        for i in range(x.shape[1])
        for value in x[b, i]
        if mask[i]
    ]


def distance(own, target):
    length = [math.sqrt(sum(v * v for v in values)) for values in (own, target)]
    return math.sqrt(sum((a / length[0] - b / length[1]) ** 2 for a, b in zip(own, target, strict=True)))


COUNTS = [([1, 1, 1, 0], 1.0), ([1, 1, 1, 1], 2.0), ([1, 0, 0, 0], 0.5)]
BATCH = {
    "attention_mask": torch.tensor([mask for mask, _ in COUNTS]),
    "sample_weight": torch.tensor([weight for _, weight in COUNTS]),
}
CASES = {
    "relations": (
        TokenRelations("a", "b", heads=2, loss="direction"),
        8,
        lambda own, target: distance(relations(own, 2, COUNTS), relations(target, 2, COUNTS)),
    ),
    "states": (Hint("a", "b", loss="direction"), 6, lambda own, target: distance(*(states(x, COUNTS) for x in (own, target)))),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_plain_loops(name):
    objective, width, reference = CASES[name]
    own, target = draw(3, 4, 6).requires_grad_(), draw(3, 4, width, seed=1)
    value = objective(Signals({"a": own}), Signals({"b": target}), BATCH).value
    assert float(value.detach()) == pytest.approx(reference(own.detach(), target), rel=1e-10)
    value.backward()
    for at in ((0, 1, 2), (1, 3, 0), (0, 3, 1)):
        ends = []
        for step in (1e-6, -1e-6):
            moved = own.detach().clone()
            moved[at] += step
            ends.append(reference(moved, target))
        assert float(own.grad[at]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_size_does_not_matter(name):
    objective, width, _ = CASES[name]
    own, target = draw(2, 4, 6), draw(2, 4, width, seed=1)
    values = [
        objective(Signals({"a": s * own}), Signals({"b": t * target}), {}).value for s, t in ((1, 1), (3, 1), (1, 7))
    ]
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(values[2], values[0])
