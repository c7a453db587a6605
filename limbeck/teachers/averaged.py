"""AveragedTeacher: the student's own weights, averaged over its steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.signals import Signals
from limbeck.teachers.frozen import FrozenTeacher


class AveragedTeacher:
    """An exponential moving average of the student: theta' <- d theta' + (1 - d) theta after every step.

    The average starts as a copy of the student. With `warmup`, d at step t is min(decay, 1 - 1 / (t + 1)), so that the random
    start is forgotten. Floating-point buffers (batch-norm statistics) are averaged too; whole numbers are copied.
    Source: Tarvainen and Valpola, "Mean teachers are better role models", 2017, eq. 2 and appendix B.
    """

    changes = True

    def __init__(self, decay: float = 0.999, warmup: bool = True):
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise UsageError(f"AveragedTeacher: decay={decay!r} must be in [0, 1)")
        self.decay, self.warmup = decay, warmup
        self._average: FrozenTeacher | None = None

    @property
    def average(self) -> nn.Module:
        """The averaged model. Raises UsageError before `start`."""
        if self._average is None:
            raise UsageError("AveragedTeacher has no student yet: call start(student) before the first step")
        return self._average.model

    def start(self, student: nn.Module) -> None:
        """Copy the student; a second call does nothing."""
        if self._average is None:
            self._average = FrozenTeacher(copy.deepcopy(student).requires_grad_(False))

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        _ = self.average
        return self._average.signals(batch, names)

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int) -> None:
        """Move the average towards the student; `step` is the number of steps done, from 1."""
        decay = min(self.decay, 1 - 1 / (step + 1)) if self.warmup else self.decay
        own, theirs = _tensors(self.average), _tensors(student)
        if own.keys() != theirs.keys():
            raise UsageError(
                "AveragedTeacher: the student's parameters changed since start(student): start a new teacher"
            )
        for name, value in own.items():
            target = theirs[name].to(value.device)
            if value.is_floating_point() or value.is_complex():
                value.lerp_(target.to(value.dtype), 1 - decay)
            else:
                value.copy_(target)

    def modules(self) -> dict[str, nn.Module]:
        return {"average": self.average}

    def digest(self) -> str:
        return digest({"kind": "averaged", "decay": self.decay, "warmup": self.warmup})

    def to(self, device: Any) -> None:
        if self._average is not None:
            self._average.to(device)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
