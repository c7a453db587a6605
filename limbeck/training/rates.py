"""A procedure that holds a learnt rate at a target: how many tokens a gate deletes, how often a branch is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Loss, Objective
from limbeck.signals import Reads, Tap
from limbeck.training.procedures import Distil, Losses, State


class RateController(nn.Module):
    """A proportional-integral controller of a penalty's weight.

        e = target - rate;   p <- smoothing p + (1 - smoothing) proportional e;   i <- i + integral e;   weight = max(least, p + i)

    least: 0 in the paper: the penalty asks for a higher rate or for nothing, and it is the loss that brings the rate down. Below 0 the
    penalty turns into a reward and brings it down itself, where the loss pushes back too weakly.

    Its state is in buffers, so a checkpoint holds it. Source: Kallini et al., "MrT5", 2025, section 3.3; the authors' code agrees (the weight
    that follows from a step's rate is used in the next step). Their settings are proportional = 0.5, integral = 1e-5 (5e-5 in one
    example of their code), smoothing = 0.9, for many thousands of steps.
    """

    def __init__(
        self,
        target: float,
        proportional: float = 0.5,
        integral: float = 1e-5,
        smoothing: float = 0.9,
        least: float = 0.0,
    ):
        super().__init__()
        if not 0 <= target <= 1:
            raise UsageError(f"RateController: target={target!r} must be a share in [0, 1]")
        if proportional < 0 or integral < 0 or not 0 <= smoothing < 1:
            raise UsageError(
                f"RateController: proportional={proportional!r} and integral={integral!r} must be at least 0 and "
                f"smoothing={smoothing!r} lie in [0, 1)"
            )
        if not least <= 0:
            raise UsageError(f"RateController: least={least!r} must be at most 0: the weight begins there")
        self.least = least
        self.target, self.proportional, self.integral, self.smoothing = target, proportional, integral, smoothing
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("i", torch.zeros(()))

    @property
    def weight(self) -> Tensor:
        """The penalty's weight now."""
        return (self.p + self.i).clamp_min(self.least)

    @torch.no_grad()
    def update(self, rate: Tensor | float) -> None:
        """See one measured rate."""
        error = self.target - rate
        self.p.mul_(self.smoothing).add_((1 - self.smoothing) * self.proportional * error)
        self.i.add_(self.integral * error)


class HoldRate(Distil):
    """Train a student while a controller holds the share of tokens its gate deletes at a target.

        L = objective + weight mean(G),   G: the gate's output over the tokens that count, from its floor to 0

    gate: path of the gate, which has a `floor`; a token counts as deleted where G < floor / 2. The weight follows
    `RateController` after every step. student, teacher, objective: as of `Distil`. Source: Kallini et al., "MrT5", 2025, eq. 4 and 5.
    """

    def __init__(self, student: nn.Module, teacher: Any, objective: Objective, gate: str, controller: RateController):
        super().__init__(student, teacher, objective)
        self.gate, self.controller = gate, controller
        self.floor = student.get_submodule(gate).floor
        self.rate: Tensor | None = None

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        super().prepare(batch, device)
        self.controller.to(device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        with torch.no_grad():
            teacher = self._teacher_signals(batch)
        reads = self.objective.reads | Reads(frozenset({self.gate}))
        with Tap(self.student, reads.student) as tap:
            student = tap(batch)
        loss, gate = self.objective(student, teacher, batch, self.connectors), student[self.gate]
        weights = positions.weights({k: v for k, v in batch.items() if k == "attention_mask"}, gate.shape)
        self.rate = positions.mean((gate.detach() < self.floor / 2).float(), weights)
        penalty = positions.mean(gate, weights)
        parts = {**loss.parts, "gate": penalty.detach(), "deleted": self.rate, "weight": self.controller.weight}
        return {"main": Loss(loss.value + self.controller.weight * penalty, parts)}

    def after_step(self, state: State) -> None:
        super().after_step(state)
        self.controller.update(self.rate)

    def kept_modules(self) -> dict[str, nn.Module]:
        return super().kept_modules() | {"controller": self.controller}
