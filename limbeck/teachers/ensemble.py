"""EnsembleTeacher: several teachers that answer together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.objectives.divergences import log_probabilities
from limbeck.signals import LOGITS, Signals
from limbeck.teachers.base import Teacher


class EnsembleTeacher:
    """The weighted mean of the members' probabilities.

    logits = log sum_m w_m softmax(z_m),   the weights scaled to the sum 1

    They are the logarithm of the mean probability, formed at temperature 1: softmax(logits) is the mean itself, and an
    objective with a temperature softens the mean (it does not average softened members). A name "M.PATH" is member M's
    signal PATH ("0.layer3"); a member that nothing was asked of does not run.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None):
        self.teachers = tuple(teachers)
        weights = tuple(weights) if weights is not None else (1.0,) * len(self.teachers)
        if len(self.teachers) < 2:
            raise UsageError(f"EnsembleTeacher needs two or more teachers; {len(self.teachers)} given")
        if len(weights) != len(self.teachers) or not all(math.isfinite(w) and w > 0 for w in weights):
            raise UsageError(
                f"EnsembleTeacher: weights={weights!r} must be {len(self.teachers)} positive finite numbers, one per teacher"
            )
        self.weights = tuple(w / math.fsum(weights) for w in weights)

    @property
    def changes(self) -> bool:
        return any(teacher.changes for teacher in self.teachers)

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        wanted = [set() for _ in self.teachers]
        for name in names - {LOGITS}:
            member, _, path = name.partition(".")
            if not path or not member.isdecimal() or int(member) >= len(self.teachers):
                raise UsageError(
                    f"signal {name!r} of an ensemble must be 'logits' or start with a member's number and a dot, 0 to "
                    f"{len(self.teachers) - 1}: for example '0.{path or name}'"
                )
            wanted[int(member)].add(path)
        shared = {LOGITS} if LOGITS in names else set()
        found, answers = {}, []
        for index, (teacher, own) in enumerate(zip(self.teachers, wanted)):
            if not own | shared:
                continue
            signals = teacher.signals(batch, frozenset(own | shared))
            found |= {f"{index}.{path}": value for path, value in signals.items() if path != LOGITS or path in own}
            if shared:
                answers.append(signals.logits)
        if shared:
            found[LOGITS] = self._mean(answers)
        return Signals(found)

    @torch.no_grad()
    def _mean(self, answers: list[torch.Tensor]) -> torch.Tensor:
        if len({tuple(answer.shape) for answer in answers}) > 1:
            shapes = ", ".join(str(tuple(answer.shape)) for answer in answers)
            raise UsageError(
                f"EnsembleTeacher: the members' logits have the shapes {shapes}; their classes must be the same"
            )
        terms = [log_probabilities(answer) + math.log(weight) for answer, weight in zip(answers, self.weights)]
        return torch.logsumexp(torch.stack(terms), dim=0)

    def modules(self) -> dict[str, nn.Module]:
        return {f"{i}.{name}": module for i, t in enumerate(self.teachers) for name, module in t.modules().items()}

    def start(self, student: nn.Module) -> None:
        for teacher in self.teachers:
            teacher.start(student)

    def after_step(self, student: nn.Module, step: int) -> None:
        for teacher in self.teachers:
            teacher.after_step(student, step)

    def observe(self, batch: Mapping[str, Any], student: Signals) -> None:
        for teacher in self.teachers:
            if hasattr(teacher, "observe"):
                teacher.observe(batch, student)

    def to(self, device: Any) -> None:
        for teacher in self.teachers:
            teacher.to(device)

    def digest(self) -> str:
        return digest({"kind": "ensemble", "members": [t.digest() for t in self.teachers], "weights": self.weights})
