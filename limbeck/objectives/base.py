"""Objective: Signals of student and teacher, and the batch, to one scalar with named parts.

Objectives are frozen dataclasses; `a + 0.5 * b` is an objective too. One that needs learnable connectors (a projector
between two widths) makes them once, from example signals, in `connectors`; whoever runs the objective owns them, trains
them with the student and hands them back at every call. Reduction everywhere: the mean over positions (samples, or tokens that count).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.signals import Reads, Signals

Batch = Mapping[str, Any]
Connectors = Mapping[str, nn.Module]


@dataclass(frozen=True)
class Loss:
    """A scalar to minimize, and the named parts it was summed from (unweighted, detached when shown)."""

    value: Tensor
    parts: Mapping[str, Tensor]


class Objective:
    """Base of every objective. A subclass is a frozen dataclass with `reads` and `compute`."""

    @property
    def reads(self) -> Reads:
        """Which signals it needs; nothing else is computed."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return type(self).__name__

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        """Modules made once from example signals, trained with the student; most objectives have none. One that follows the
        training has `after_step(state)`, which is called after every optimizer step (see `limbeck.training.State`)."""
        return {}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        """The scalar loss."""
        raise NotImplementedError

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None) -> Loss:
        value = self.compute(student, teacher, batch, connectors or {})
        return Loss(value, {self.name: value.detach()})

    def losses(
        self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None
    ) -> dict[int, Loss]:
        """The loss of each term that is computed, unweighted, by its place in the sum; one that is no sum is its only term."""
        return {0: self(student, teacher, batch, connectors)}

    def join(self, losses: Mapping[int, Loss]) -> Loss:
        """What `losses` returned, as the weighted sum with all parts."""
        return losses[0]

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum((*terms_of(self), *terms_of(other)))

    def __mul__(self, weight: float) -> Objective:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            return NotImplemented
        if not math.isfinite(weight):
            raise UsageError(f"{self.name}: the weight {weight!r} must be a finite number")
        return Sum(tuple((term, w * weight) for term, w in terms_of(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Objective):
    """A weighted sum of objectives: L = sum_i w_i L_i. A term of weight 0 is not computed."""

    terms: tuple[tuple[Objective, float], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise UsageError("a sum of objectives needs at least one term")

    @property
    def reads(self) -> Reads:
        reads = Reads()
        for term, weight in self.terms:
            reads = reads | term.reads if weight else reads
        return reads

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        made = {}
        for index, (term, weight) in enumerate(self.terms):
            if weight:
                made |= {f"{index}_{name}": module for name, module in term.connectors(student, teacher).items()}
        return made

    def losses(
        self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None
    ) -> dict[int, Loss]:
        made = {}
        for index, (term, weight) in enumerate(self.terms):
            if weight:
                prefix = f"{index}_"
                own = {k[len(prefix) :]: v for k, v in (connectors or {}).items() if k.startswith(prefix)}
                made[index] = term(student, teacher, batch, own)
        if not made:
            raise UsageError("every term of the objective has weight 0: there is nothing to minimize")
        return made

    def join(self, losses: Mapping[int, Loss]) -> Loss:
        total = None
        for index, loss in losses.items():
            value = self.terms[index][1] * loss.value
            total = value if total is None else total + value
        return Loss(total, named_parts(losses))

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None) -> Loss:
        return self.join(self.losses(student, teacher, batch, connectors))


def named_parts(losses: Mapping[int, Loss]) -> dict[str, Tensor]:
    """The parts of several losses by name; one that was taken gets the place of its term: "Hint(layer2)#3"."""
    parts: dict[str, Tensor] = {}
    for index, loss in losses.items():
        for name, value in loss.parts.items():
            parts[name if name not in parts else f"{name}#{index}"] = value
    return parts


def terms_of(objective: Objective) -> tuple[tuple[Objective, float], ...]:
    """The terms of a sum with their weights; an objective that is none is its own only term."""
    return objective.terms if isinstance(objective, Sum) else ((objective, 1.0),)
