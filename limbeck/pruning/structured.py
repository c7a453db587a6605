"""Prune: take out whole channels, neurons and attention heads, so that the model really is smaller and needs no special kernel.

    trace groups -> score their items -> choose how many of each group stay -> the plan: kept positions per module and axis

The plan holds {path: {"out" | "in": kept positions}} and the attributes that state head counts; `apply` only slices, so a plan
replays on an empty model without data or tracing.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.measure.flops import count_flops
from limbeck.plan import Plan
from limbeck.pruning.groups import Group, attribute_values, cut, find_groups, kept_positions
from limbeck.pruning.importance import Context, Scorer, Statistics, Taylor, measure
from limbeck.pruning.selection import parameters_after, select
from limbeck.pruning.slicing import dimensions
from limbeck.signals import match_paths, to_device


@dataclass(frozen=True)
class Prune:
    """Structured pruning of channels (convolutions), neurons (linear layers between which nothing mixes) and heads.

    Exactly one of
      keep             the fraction of items that stays, taken over all groups of one kind (channels, neurons, heads) together
                       with scope "global" and in each group by itself with scope "layer"; 0.5 if none of the three is given
      keep_parameters  the fraction of the model's parameters that may stay at most; `keep` is found by bisection
      keep_flops       the same for the FLOPs of one forward pass (matrix products and convolutions) on one example

    scope       "global" ranks all items of one kind together. Scores of a scorer that is not `comparable` are divided by their
                group's mean first, since groups differ in size; Taylor scores are losses and are compared as they are.
    round_to    channels and neurons stay in multiples of this (the nearest one; small groups stay whole); heads one by one
    minimum     the fraction of every group that stays whatever its scores
    ignore      path patterns; a group that any of them produces stays whole
    heads, channels, neurons   which kinds are pruned at all

    What reaches the model's output (the classifier) is never pruned. Groups that cannot be traced, or for which cutting does
    not equal masking, stay whole and are listed with the reason in `decisions["left_alone"]`. `budget` is not read: budgets are
    in measured units of the exported artifact. Raises UsageError for fractions outside (0, 1], unknown patterns, a missing
    task (its example input is traced) or a target that cannot be reached.
    """

    scorer: Scorer = field(default_factory=Taylor)
    keep: float | None = None
    keep_parameters: float | None = None
    keep_flops: float | None = None
    scope: str = "global"
    round_to: int = 8
    minimum: float = 0.1
    ignore: tuple[str, ...] = ()
    heads: bool = True
    channels: bool = True
    neurons: bool = True

    def __post_init__(self) -> None:
        targets = {n: getattr(self, n) for n in ("keep", "keep_parameters", "keep_flops")}
        given = [name for name, value in targets.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"Prune: give one of keep, keep_parameters and keep_flops, not {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "keep", 0.5)
        for name in given:
            check_fraction(f"Prune: {name}", targets[name])
        if self.scope not in ("global", "layer"):
            raise UsageError(f"Prune: scope must be 'global' or 'layer', not {self.scope!r}")
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise UsageError(f"Prune: round_to must be a whole number of at least 1, not {self.round_to!r}")
        if not 0 <= self.minimum <= 1:
            raise UsageError(f"Prune: minimum must lie in [0, 1], not {self.minimum!r}")
        if not (self.heads or self.channels or self.neurons):
            raise UsageError("Prune: heads, channels and neurons are all off: there is nothing to prune")
        object.__setattr__(self, "ignore", (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore))

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide which items stay. The model is left as it was found."""
        if task is None:
            raise UsageError("Prune traces the model on an example input: pass the task")
        for pattern in self.ignore:
            match_paths(model, pattern)
        groups, left = find_groups(model, task.example(2))
        wanted = []
        for group in groups:
            reason = self._excluded(group)
            if reason:
                left[group.name] = reason
            else:
                wanted.append(group)
        readers = sorted({m.path for g in wanted for m in g.members if m.axis == "in"})
        statistics = measure(model, task, self.scorer, readers) if wanted else Statistics()
        scores = {g.name: score_group(model, g, self.scorer, statistics) for g in wanted}
        keep, kept = self._choose(model, task, wanted, scores)
        return Plan(
            "prune_structured",
            {
                "kept": kept_positions(model, wanted, kept),
                "attributes": attribute_values(wanted, kept),
                "groups": [
                    {
                        "name": g.name,
                        "kind": g.kind,
                        "items": g.items,
                        "kept": len(kept[g.name]),
                        "paths": list(dict.fromkeys(m.path for m in g.members)),
                    }
                    for g in wanted
                ],
                "left_alone": left,
                "settings": {"scorer": repr(self.scorer), "keep": keep, "scope": self.scope},
            },
        )

    def _excluded(self, group: Group) -> str:
        if not getattr(self, group.kind):
            return f"pruning of {group.kind} is off"
        for pattern in self.ignore:
            for member in group.members:
                if member.axis == "out" and _inside(member.path, pattern):
                    return f"{member.path!r} is ignored"
        return ""

    def _choose(
        self, model: nn.Module, task: Any, groups: Sequence[Group], scores: Mapping[str, Tensor]
    ) -> tuple[float, dict[str, list[int]]]:
        def kept(keep: float) -> dict[str, list[int]]:
            return select(groups, scores, keep, self.scope, self.round_to, self.minimum, self.scorer.comparable)

        if self.keep is not None:
            return self.keep, kept(self.keep)
        name = "keep_parameters" if self.keep_parameters is not None else "keep_flops"
        target = getattr(self, name)
        whole = sum(p.numel() for p in model.parameters())
        if name == "keep_flops":
            example = to_device(task.example(1), next(model.parameters()).device)
            whole = count_flops(model, example)

        measured: dict[tuple[int, ...], float] = {}  # many values of keep round to the same sizes

        def fraction(keep: float) -> float:
            chosen = kept(keep)
            sizes = tuple(map(len, chosen.values()))
            if sizes not in measured:
                positions = kept_positions(model, groups, chosen)
                if name == "keep_parameters":
                    measured[sizes] = parameters_after(model, positions) / whole
                else:
                    small = cut(copy.deepcopy(model), positions, attribute_values(groups, chosen))
                    measured[sizes] = count_flops(small, example) / whole
            return measured[sizes]

        low, high = 1e-6, 1.0
        if fraction(high) <= target:
            return high, kept(high)
        smallest = fraction(low)
        if smallest > target:
            raise UsageError(
                f"Prune: {name}={target} cannot be reached: pruning everything allowed still leaves {smallest:.3f}. "
                "Lower round_to or minimum, ignore less, or add another transform"
            )
        for _ in range(14):
            middle = (low + high) / 2
            low, high = (middle, high) if fraction(middle) <= target else (low, middle)
        return low, kept(low)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Slice what the plan names. Raises ArtifactError where the model has no such module or position."""
    for path in {*plan.decisions["kept"], *plan.decisions["attributes"]}:
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArtifactError(f"the plan prunes {path!r}, which this {type(model).__name__} does not have") from None
    return cut(model, plan.decisions["kept"], plan.decisions["attributes"])


def score_group(model: nn.Module, group: Group, scorer: Scorer, statistics: Statistics) -> Tensor:
    """(items,) scores of one group, float32 on the CPU. Raises UsageError where a score is not finite."""
    modules = dict(model.named_modules())
    weights, saliences, inputs, scales = [], [], [], []
    for member in group.members:
        module = modules[member.path]
        for name, axes in dimensions(module).items():
            value = getattr(module, name)
            if member.axis not in axes or not isinstance(value, nn.Parameter):
                continue
            weights.append(rows(value.detach(), axes[member.axis], member.index))
            salience = statistics.saliences.get(f"{member.path}.{name}")
            if salience is not None:
                saliences.append(rows(salience, axes[member.axis], member.index))
            read = statistics.inputs.get(member.path) if member.axis == "in" else None
            if read is not None:
                shape = [1] * value.dim()
                shape[axes["in"]] = -1
                read = rows(read.reshape(shape).expand_as(value), axes["in"], member.index)
            inputs.append(read)
            if name == "weight" and isinstance(module, nn.modules.batchnorm._NormBase):
                scales.append(rows(value.detach(), 0, member.index)[:, 0])
    context = Context(group.items, weights, saliences, inputs, scales, group.name)
    scores = scorer.score(context).detach().float().cpu()
    if scores.shape != (group.items,) or not scores.isfinite().all():
        raise UsageError(
            f"{type(scorer).__name__} gave {group.name!r} scores of shape {tuple(scores.shape)}, "
            f"{int((~scores.isfinite()).sum())} of them not finite; expected {group.items} finite ones"
        )
    return scores


def rows(value: Tensor, dimension: int, index: Tensor) -> Tensor:
    """(items, elements): the slices of `value` along a dimension that each item owns, index (items, positions), -1 = none."""
    flat = value.movedim(dimension, 0).flatten(1) if value.dim() > 1 else value[:, None]
    index = index.to(value.device)
    owned = flat[index.clamp_min(0)] * (index >= 0)[..., None]
    return owned.flatten(1)


def check_fraction(field_name: str, value: Any) -> None:
    """Raises UsageError unless the value lies in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise UsageError(
            f"{field_name} must lie in (0, 1], not {value!r}: at 0 nothing would be kept, at 1 everything is"
        )


def _inside(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern + ".*")
