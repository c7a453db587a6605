"""Procedures over several views of a batch: one that changes the batch first, and one that holds two views to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, Objective
from limbeck.signals import Signals, Tap
from limbeck.training.procedures import Distil, Losses, Procedure, State, describe

Change = Callable[[Mapping[str, Any]], dict[str, Any]]


class OnViews(Procedure):
    """Another procedure on changed batches: `OnViews(Distil(student, teacher, objective), Rotations())`.

    change: batch -> batch, with more examples where it likes; what it draws comes from the global generator. Evaluation sees the batches as
    they are. Raises UsageError for a `change` that cannot be called.
    """

    def __init__(self, procedure: Procedure, change: Change):
        if not callable(change):
            raise UsageError(f"OnViews: change={change!r} must be a function of a batch")
        self.procedure, self.change = procedure, change

    @property
    def modules(self) -> dict[str, nn.Module]:
        return self.procedure.modules

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return self.procedure.optimizers

    @property
    def learning_rates(self) -> dict[str, float]:
        return self.procedure.learning_rates

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.procedure.prepare(self.change(batch), device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        return self.procedure.step(self.change(batch), state)

    def after_step(self, state: State) -> None:
        self.procedure.after_step(state)

    def weight(self, batch: Mapping[str, Any]) -> float:
        return self.procedure.weight(batch)

    def kept_modules(self) -> dict[str, nn.Module]:
        return self.procedure.kept_modules()

    def model(self) -> nn.Module | None:
        return self.procedure.model()

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.procedure.forward(batch)

    def describe(self) -> Any:
        return {"procedure": "OnViews", "change": describe(self.change), "inner": self.procedure.describe()}


class TwoViews(Distil):
    """A student learns labels from two views of each example, and on the strong view what it says itself of the weak one.

    L = objective(both views) + consistency(student = strong view, teacher = weak view, without gradient)

    student: a module. objective: of the student's signals over both views together (2 B examples, the weak ones first). consistency:
    an objective that reads the same names of student and teacher, or None. strong: batch -> batch, the strong view of what the data give,
    which is the weak view. Both views go through the student in one pass, so batch normalization sees them together.
    Raises UsageError for connectors or a `strong` that changes the number of examples.
    """

    def __init__(self, student: nn.Module, objective: Objective, consistency: Objective | None, strong: Change):
        super().__init__(student, None, objective)
        if not callable(strong):
            raise UsageError(f"TwoViews: strong={strong!r} must be a function of a batch")
        self.consistency, self.strong = consistency, strong

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        super().prepare(batch, device)
        if self.consistency is not None:
            made = self.consistency.connectors(Signals({}), Signals({}))
            if made:
                raise UsageError(f"TwoViews: the consistency {self.consistency.name} has connectors; use one without")

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        strong, count = self.strong(batch), len(next(iter(batch.values())))
        both = {
            name: torch.cat([value, strong[name]])
            if isinstance(value, Tensor) and value.dim() and len(value) == count
            else value
            for name, value in batch.items()
        }
        names = self.objective.reads.student
        if self.consistency is not None:
            names = names | self.consistency.reads.student | self.consistency.reads.teacher
        with Tap(self.student, names) as tap:
            signals = tap(both)
        own = self.objective(signals, Signals({}), both, self.connectors)
        if self.consistency is None:
            return {"main": own}
        weak, hard = (Signals({name: part(signals[name]) for name in names}) for part in (_first, _second))
        held = self.consistency(hard, weak.detach(), batch)
        return {
            "main": Loss(
                own.value + held.value, {**own.parts, **{f"consistency {k}": v for k, v in held.parts.items()}}
            )
        }

    def describe(self) -> Any:
        return super().describe() | {"consistency": describe(self.consistency), "strong": describe(self.strong)}


def _first(x: Tensor) -> Tensor:
    return x[: len(x) // 2]


def _second(x: Tensor) -> Tensor:
    return x[len(x) // 2 :]
