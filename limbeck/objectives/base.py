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

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Sum((*_terms(self), *_terms(other)))

    def __mul__(self, weight: float) -> Objective:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            return NotImplemented
        if not math.isfinite(weight):
            raise UsageError(f"{self.name}: the weight {weight!r} must be a finite number")
        return Sum(tuple((term, w * weight) for term, w in _terms(self)))

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

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None) -> Loss:
        total, parts = None, {}
        for index, (term, weight) in enumerate(self.terms):
            if not weight:
                continue
            prefix = f"{index}_"
            own = {k[len(prefix) :]: v for k, v in (connectors or {}).items() if k.startswith(prefix)}
            loss = term(student, teacher, batch, own)
            total = weight * loss.value if total is None else total + weight * loss.value
            for name, value in loss.parts.items():
                parts[name if name not in parts else f"{name}#{index}"] = value
        if total is None:
            raise UsageError("every term of the objective has weight 0: there is nothing to minimize")
        return Loss(total, parts)


def _terms(objective: Objective) -> tuple[tuple[Objective, float], ...]:
    return objective.terms if isinstance(objective, Sum) else ((objective, 1.0),)
