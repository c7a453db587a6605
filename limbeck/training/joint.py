"""Joint: several procedures take one step together, on the same batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, named_parts
from limbeck.training.procedures import Losses, Procedure, State


class Joint(Procedure):
    """L = sum over procedures of w_i L_i, each on its own forward passes over the same batch.

        Joint({"masked": MaskedImages(encoder), "matching": Distil(encoder, teacher, Hint("head:input"))})

    procedures: by name; their modules get it as a prefix. A module that several of them train is one module, under the first's name.
    weights: by the same names; 1 where there is none. What is evaluated, and what a piece of a batch weighs, is the first's answer.
    Raises UsageError for fewer than two procedures, one with several optimizers or rates of its own, and a weight for none of them.
    """

    def __init__(self, procedures: Mapping[str, Procedure], weights: Mapping[str, float] | None = None):
        self.procedures, self.weights = dict(procedures), dict(weights or {})
        if len(self.procedures) < 2:
            raise UsageError(f"Joint needs two procedures or more, not {len(self.procedures)}")
        unknown = sorted(set(self.weights) - set(self.procedures))
        if unknown:
            raise UsageError(f"Joint: weights names {unknown}; there are {', '.join(self.procedures)}")
        for name, procedure in self.procedures.items():
            if tuple(procedure.optimizers) != ("main",) or procedure.learning_rates:
                raise UsageError(f"Joint: {name!r} has optimizers or rates of its own; here one optimizer moves all")

    def _united(self, kind: str) -> dict[str, nn.Module]:
        """The modules of all, each once."""
        found: dict[str, nn.Module] = {}
        for name, procedure in self.procedures.items():
            modules = procedure.modules if kind == "modules" else procedure.kept_modules()
            known = {id(module) for module in found.values()}
            found |= {f"{name}.{key}": module for key, module in modules.items() if id(module) not in known}
        return found

    @property
    def modules(self) -> dict[str, nn.Module]:
        return self._united("modules")

    def kept_modules(self) -> dict[str, nn.Module]:
        return self._united("kept")

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        for procedure in self.procedures.values():
            procedure.prepare(batch, device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        losses = {name: procedure.step(batch, state)["main"] for name, procedure in self.procedures.items()}
        value = sum(self.weights.get(name, 1.0) * loss.value for name, loss in losses.items())
        return {"main": Loss(value, named_parts(losses))}

    def after_step(self, state: State) -> None:
        for procedure in self.procedures.values():
            procedure.after_step(state)

    def _first(self) -> Procedure:
        return next(iter(self.procedures.values()))

    def weight(self, batch: Mapping[str, Any]) -> float:
        return self._first().weight(batch)

    def model(self) -> nn.Module | None:
        return self._first().model()

    def forward(self, batch: Mapping[str, Any]) -> Any:
        return self._first().forward(batch)

    def describe(self) -> Any:
        inner = {name: procedure.describe() for name, procedure in self.procedures.items()}
        return super().describe() | {"procedures": inner, "weights": {n: float(w) for n, w in self.weights.items()}}
