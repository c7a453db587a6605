"""Sharpness-aware minimization: move by the gradient at the worst place nearby, so that training ends where the loss is flat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from limbeck.errors import UsageError
from limbeck.objectives.base import Objective
from limbeck.signals import Signals, Tap
from limbeck.training.procedures import Distil, Losses, State


class _Tapped(nn.Module):
    """A pass that yields signals, as a module, so that it can be called with other weights."""

    def __init__(self, model: nn.Module, names: frozenset[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, batch: Mapping[str, Any]) -> Signals:
        with Tap(self.model, self.names) as tap:
            return tap(batch)


class SharpnessAware(Distil):
    """Distillation (or, without a teacher, plain training) whose gradient is taken at w + e, the ascent direction's end.

    e = radius g / |g|,   g = grad L(w);   the step follows grad L(w + e)

    Twice the passes of `Distil`. Running statistics are those of the pass at w. Connectors stay where they are. student, teacher, objective:
    as of `Distil`. A teacher trained so is flat, and easier to learn from. Raises UsageError for a radius that is not positive.
    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, eq. 2 and 3, radius 0.05;
    for teachers Rangwani et al., "DeiT-LT", CVPR 2024.
    """

    def __init__(self, student: nn.Module, teacher: Any, objective: Objective, radius: float = 0.05):
        super().__init__(student, teacher, objective)
        if isinstance(radius, bool) or not (math.isfinite(radius) and radius > 0):
            raise UsageError(f"SharpnessAware: radius={radius!r} must be a positive finite number")
        self.radius = radius

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        with torch.no_grad():
            teacher = self._teacher_signals(batch)
        tapped = _Tapped(self.student, self.objective.reads.student)
        here = tapped(batch)
        observe = getattr(self.teacher, "observe", None)
        if observe is not None:
            observe(batch, here.detach())
        named = {name: value for name, value in tapped.named_parameters() if value.requires_grad}
        value = self.objective(here, teacher, batch, self.connectors).value
        slopes = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        slopes = [torch.zeros_like(p) if slope is None else slope for p, slope in zip(named.values(), slopes)]
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(slope) for slope in slopes]))
        scale = self.radius / length.clamp_min(torch.finfo(length.dtype).tiny)
        there = {name: p + scale * slope for (name, p), slope in zip(named.items(), slopes)}
        there |= {name: buffer.clone() for name, buffer in tapped.named_buffers()}
        return {"main": self.objective(functional_call(tapped, there, (batch,)), teacher, batch, self.connectors)}

    def describe(self) -> Any:
        return super().describe() | {"radius": self.radius}
