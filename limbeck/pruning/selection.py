"""Selection: how many items of each group stay for a given `keep`, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from limbeck.pruning.slicing import dimensions
from limbeck.pruning.tracing import Group


def select(
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    keep: float,
    scope: str,
    round_to: int,
    minimum: float,
    comparable: bool,
) -> dict[str, list[int]]:
    """Kept items by group name: the best `keep` of each kind together ("global") or of each group ("layer"), rounded.

    Global: the cut is the score at which the rounded sizes of all groups come nearest to keep * items.
    """
    counts: dict[str, int] = {}
    for kind in dict.fromkeys(group.kind for group in groups):
        own = [group for group in groups if group.kind == kind]
        if scope == "layer" or keep == 1:
            counts |= {g.name: rounded(keep * g.items, g, round_to, minimum) for g in own}
            continue
        values = {
            g.name: scores[g.name] if comparable else scores[g.name] / scores[g.name].mean().clamp_min(1e-30)
            for g in own
        }
        order = torch.cat(list(values.values())).sort(descending=True, stable=True).indices
        owner = torch.cat([torch.full((g.items,), i) for i, g in enumerate(own)])[order]

        def sizes(rank: int, own=own, owner=owner) -> dict[str, int]:
            counted = owner[:rank].bincount(minlength=len(own)).tolist()
            return {g.name: rounded(n, g, round_to, minimum) for g, n in zip(own, counted)}

        target = keep * len(order)
        low, high = 1, len(order)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if sum(sizes(middle).values()) >= target else (middle + 1, high)
        choices = [sizes(rank) for rank in {max(1, low - 1), low}]
        counts |= min(choices, key=lambda chosen: abs(sum(chosen.values()) - target))
    return {
        g.name: sorted(scores[g.name].sort(descending=True, stable=True).indices[: counts[g.name]].tolist())
        for g in groups
    }


def rounded(count: float, group: Group, round_to: int, minimum: float) -> int:
    """How many items of a group stay: the nearest multiple of `round_to`, no fewer than `minimum`, at least one step."""
    if count >= group.items:
        return group.items
    step = 1 if group.kind == "heads" else round_to
    least = math.ceil(minimum * group.items / step) * step
    return min(group.items, max(step, least, math.floor(count / step + 0.5) * step))


def parameters_after(model: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> int:
    """How many parameters remain, without cutting anything."""
    total = sum(p.numel() for p in model.parameters())
    for path, positions in kept.items():
        module = model.get_submodule(path)
        for name, axes in dimensions(module).items():
            value = getattr(module, name)
            if isinstance(value, nn.Parameter):
                shape = list(value.shape)
                for axis, stay in positions.items():
                    if axis in axes:
                        shape[axes[axis]] = len(stay)
                total -= value.numel() - math.prod(shape)
    return total
