"""Constrained: weights that must stay in a set are put back into it after every step (projected gradient descent)."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.training.procedures import Procedure, State


def non_negative(weight: Tensor) -> Tensor:
    """max(w, 0), the nearest weight without negative entries."""
    return weight.clamp(min=0)


class Around(Procedure):
    """A procedure made of another one, `self.procedure`: everything is the other's, but for what a subclass does after a step."""

    procedure: Procedure

    @property
    def modules(self) -> dict[str, Any]:
        return self.procedure.modules

    @property
    def optimizers(self):
        return self.procedure.optimizers

    @property
    def learning_rates(self):
        return self.procedure.learning_rates

    def prepare(self, batch, device) -> None:
        self.procedure.prepare(batch, device)

    def step(self, batch, state: State):
        return self.procedure.step(batch, state)

    def after_step(self, state: State) -> None:
        self.procedure.after_step(state)

    def weight(self, batch) -> float:
        return self.procedure.weight(batch)

    def kept_modules(self):
        return self.procedure.kept_modules()

    def model(self):
        return self.procedure.model()

    def forward(self, batch) -> Tensor:
        return self.procedure.forward(batch)


class Constrained(Around):
    """Any procedure, with some parameters projected after each of its steps:  w <- P(w).

    names: a pattern of parameter names as "module/parameter", such as "student/fc.weight". project: P, of one tensor.
    Everything else is the procedure's own. Raises UsageError for a pattern that matches nothing.
    """

    def __init__(self, procedure: Procedure, names: str, project: Callable[[Tensor], Tensor] = non_negative):
        self.procedure, self.names, self.project = procedure, names, project
        if not self._constrained():
            known = [f"{name}/{key}" for name, module in self.modules.items() for key, _ in module.named_parameters()]
            raise UsageError(f"no parameter is named {names!r}; there are {', '.join(known[-5:])}")

    def _constrained(self) -> list[Tensor]:
        found = []
        for name, module in self.modules.items():
            found += [p for key, p in module.named_parameters() if fnmatch.fnmatchcase(f"{name}/{key}", self.names)]
        return found

    def after_step(self, state: State) -> None:
        with torch.no_grad():
            for parameter in self._constrained():
                parameter.copy_(self.project(parameter))
        self.procedure.after_step(state)

    def describe(self) -> Any:
        inner = self.procedure.describe()
        return {"procedure": "Constrained", "names": self.names, "project": self.project.__name__, "inner": inner}
