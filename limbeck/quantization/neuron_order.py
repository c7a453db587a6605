"""OrderNeurons: neurons of similar size side by side, so that they can share a scale or a codebook that no table has to address.

The channels, neurons and heads that `Prune` could cut are put into another order, in every layer that makes or reads them: the model computes what it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.pruning.groups import find_groups
from limbeck.pruning.slicing import dimensions, width
from limbeck.pruning.tracing import Group


def neuron_sizes(model: nn.Module, group: Group) -> Tensor:
    """The root mean square of the weights that make each item of a group, over all modules that make it: (items,)."""
    total, count = torch.zeros(group.items, dtype=torch.float64), torch.zeros(group.items, dtype=torch.float64)
    for member in group.members:
        module = model.get_submodule(member.path)
        axis = dimensions(module).get("weight", {}).get("out")
        if member.axis != "out" or axis is None or module.weight.dim() < 2:
            continue
        squares = module.weight.detach().double().movedim(axis, 0).flatten(1).square()
        held = (member.index >= 0).double()
        per_row = squares.sum(1)[member.index.clamp(min=0)] * held
        total, count = total + per_row.sum(1).cpu(), count + held.sum(1).cpu() * squares.shape[1]
    return (total / count.clamp(min=1)).sqrt()


def reordered(
    model: nn.Module, groups: Iterable[Group], orders: Mapping[str, Tensor]
) -> dict[str, dict[str, list[int]]]:
    """{path: {axis: positions}} that put item orders[name][i] of every group in the place of its item i."""
    found: dict[str, dict[str, list[int]]] = {}
    for group in groups:
        for member in group.members:
            axes = found.setdefault(member.path, {})
            positions = axes.setdefault(member.axis, list(range(width(model.get_submodule(member.path), member.axis))))
            for old, new in zip(member.index.flatten().tolist(), member.index[orders[group.name]].flatten().tolist()):
                if old >= 0:
                    positions[old] = new
    return found


@dataclass(frozen=True)
class OrderNeurons:
    """Sort the items of every group of channels, neurons or heads by the size of the weights that make them, smallest first.

    kinds: which of "channels", "neurons" and "heads". Data are not read, but the task's example is, to trace the model. The plan is one of `Prune` that
    cuts nothing. Raises UsageError for unknown kinds, and without a task.
    """

    kinds: tuple[str, ...] = ("channels", "neurons", "heads")

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds))
        if not self.kinds or not set(self.kinds) <= {"channels", "neurons", "heads"}:
            raise UsageError(f"kinds={self.kinds!r}: allowed are 'channels', 'neurons' and 'heads'")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find the order; the model stays as it is."""
        if task is None:
            raise UsageError("OrderNeurons traces the model on an example input: pass the task")
        groups, left = find_groups(model, task.example(2))
        wanted = [group for group in groups if group.kind in self.kinds]
        orders = {group.name: neuron_sizes(model, group).argsort(stable=True) for group in wanted}
        named = [
            {"name": g.name, "kind": g.kind, "items": g.items, "kept": g.items, "paths": list(dict.fromkeys(m.path for m in g.members))}
            for g in wanted
        ]  # fmt: skip
        left |= {group.name: f"{group.kind} stay in order" for group in groups if group.kind not in self.kinds}
        decisions = {"kept": reordered(model, wanted, orders), "attributes": {}, "groups": named, "left_alone": left}
        return Plan("prune_structured", decisions | {"settings": {"order": "size"}})
