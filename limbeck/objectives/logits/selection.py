"""Objectives that learn from a chosen part of the positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_positive, require_signal
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import LOGITS, Reads, Signals


def highest(scores: Tensor, weights: Tensor | None, keep: float) -> Tensor:
    """The weights (...) of the positions with the highest scores (...), 0 elsewhere.

    Of the n positions that count (weight above 0), those at or above the (1 - keep) quantile stay: 1 + floor(keep (n - 1)), and all
    that tie with the last of them. weights None: every position counts 1.
    """
    weights = torch.ones_like(scores) if weights is None else weights
    counted = scores[weights > 0]
    if not len(counted):
        return weights
    rank = 1 + math.floor(keep * (len(counted) - 1) + 1e-9)
    least = counted.topk(rank).values[-1]
    return weights * (scores >= least)


@dataclass(frozen=True)
class ExcessTargets(TeacherTargets):
    """Soft targets on the share `keep` of positions where the student lags furthest behind a reference of its own size.

    D = KL(p || q) - KL(p || r),   p, q, r: target, student and reference, softmax(z / T)
    L = T^2 mean of KL(p || q) over the positions whose D is at or above the (1 - keep) quantile of the batch

    The reference is a model like the student, already distilled from the target. What it could not learn (both KLs large) or
    what the student knows by now (both small) is left out; what a model of this size can learn and the student has not yet, stays.
    Selection carries no gradient. keep = 1 is `SoftTargets`.

    Shapes: logits (B, C) or (B, L, C), a batch at a time. target, reference: the names of the logits among the teacher's signals;
    the defaults are the members of `EnsembleTeacher([target, reference])`. Raises UsageError for a `keep` outside (0, 1].

    Source: Hu et al., "AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders", 2025, section 3.2,
    with keep = 0.4 and T = 1. Deviation: the authors' code divides by all labelled tokens of the batch, which scales the
    loss by about `keep`; here, as in the formula, it is the mean over the kept ones.
    """

    keep: float = 0.4
    temperature: float = 1.0
    target: str = f"0.{LOGITS}"
    reference: str = f"1.{LOGITS}"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)
        require_positive(self, "keep", self.keep)
        if self.keep > 1:
            raise UsageError(f"{self.name}: keep={self.keep!r} must be a share of the positions, above 0 and at most 1")
        for field in ("target", "reference"):
            require_signal(self, field, getattr(self, field))
        if self.target == self.reference:
            raise UsageError(f"{self.name}: target and reference are both {self.target!r}: nothing exceeds itself")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}), teacher=frozenset({self.target, self.reference}))

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p = divergences.log_probabilities(teacher, self.temperature)
        return divergences.kl_divergence(log_p, divergences.log_probabilities(student, self.temperature))

    def scores(self, loss: Tensor, reference_loss: Tensor) -> Tensor:
        """What a position is chosen by, highest first: the excess of the student's divergence over the reference's. (...)"""
        return loss - reference_loss

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        target = teacher[self.target].detach()
        own, aligned, weights = self.aligned(student.logits, target, batch)
        if teacher[self.reference].shape != own.shape:
            raise UsageError(
                f"{self.name}: the reference's output has the shape {tuple(teacher[self.reference].shape)} and the student's "
                f"{tuple(own.shape)}; a reference has the student's classes and positions"
            )
        loss = self.compare(own, aligned)
        with torch.no_grad():
            reference = positions.blank(teacher[self.reference], weights)
            chosen = highest(self.scores(loss.detach(), self.compare(reference, aligned)), weights, self.keep)
        return self.temperature**2 * positions.mean(loss, chosen)
