"""Objectives that tell an example from the others of its batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_signal
from limbeck.signals import LOGITS, Reads, Signals


def leave_one_out_log_means(scores: Tensor) -> Tensor:
    """m_ij = log 1/(n-1) sum_{k != j} exp(f_ik) of scores f (n, n): every row's mean without one entry; (n, n), n >= 2."""
    count = scores.shape[0]
    left = torch.eye(count, dtype=torch.bool, device=scores.device)
    others = scores.unsqueeze(1).expand(count, count, count).masked_fill(left, -torch.inf)
    return others.logsumexp(-1) - math.log(count - 1)


def interpolated_bound(scores: Tensor, log_baseline: Tensor, alpha: float, weights: Tensor | None = None) -> Tensor:
    """A lower bound on mutual information from critic scores f (n, n), matching pairs on the diagonal; a scalar.

    I = 1 + mean_{i != j} (f_ii - b_ij) - mean_{i != j} exp(f_ij - b_ii),   b_ij = log(alpha e^{m_ij} + (1 - alpha) q_i)

    with m of `leave_one_out_log_means` and log q the `log_baseline` (n,) of every row. alpha = 1 takes the baseline from
    the batch, as InfoNCE does (low variance, biased); alpha = 0 is the bound of a learned baseline (TUBA: unbiased in the
    limit, high variance). weights (n,): what each row counts in both means.
    """
    count = scores.shape[0]
    ends = []
    if alpha > 0:
        ends.append(leave_one_out_log_means(scores) + math.log(alpha))
    if alpha < 1:
        ends.append(log_baseline.unsqueeze(1).expand(count, count) + math.log1p(-alpha))
    baseline = torch.logaddexp(*ends) if len(ends) == 2 else ends[0]
    off = ~torch.eye(count, dtype=torch.bool, device=scores.device)
    pairs = off.to(scores.dtype) if weights is None else off * weights.unsqueeze(1)
    joint = scores.diagonal().unsqueeze(1) - baseline
    marginal = (scores - baseline.diagonal().unsqueeze(1)).masked_fill(~off, -torch.inf).exp()
    return 1 + positions.mean(joint, pairs) - positions.mean(marginal, pairs)


@dataclass(frozen=True)
class MutualInformation(Objective):
    """MI-alpha: the student's feature of an example tells as much as it can of the teacher's, by a variational bound.

    L = -I(f, q, alpha),   f_ij = <g_t(t_i), g_s(s_j)>,   log q_i = a(t_i);   I: see `interpolated_bound`

    g_t, g_s and a are perceptrons with two hidden ReLU layers of `hidden` units, g_t and g_s with `embedding` outputs, a with one.
    They are connectors: trained with the student to make the bound tight, and thrown away. Any two widths fit. alpha
    between 0 and 1 trades bias for variance: 1 an InfoNCE bound, 0 the learned baseline.

    student, teacher: features; of a sequence the mean over its attended tokens, or with pooling="first" its first token;
    of a map the mean over its places. Shapes: (B, D_s) and (B, D_t) after pooling. Examples of weight 0 are not there.
    The first batch must have at least 3 examples, else UsageError; a later one of fewer than 3 contributes 0.
    Source: He et al., "Distiller: A Systematic Study of Model Distillation Methods in Natural Language Processing", 2021,
    section 3 (MI-alpha); the bound is I_alpha of Poole et al., "On Variational Bounds of Mutual Information", 2019, eq. 11.
    The authors' code has the same formula, up to two things: it keeps alpha as a logit, whose comment names the two ends
    the wrong way round, and its critic reads all token states of a text in a row, so all texts need one length. The sizes
    of the perceptrons are those of Poole et al.
    """

    student: str = LOGITS
    teacher: str = LOGITS
    alpha: float = 0.5
    pooling: str = "mean"
    hidden: int = 256
    embedding: int = 32

    smallest = 3  # examples; with 2 the leave-one-out mean of the matching pair is one score

    def __post_init__(self) -> None:
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)
        require_choice(self, "pooling", self.pooling, ("mean", "first"))
        if isinstance(self.alpha, bool) or not isinstance(self.alpha, (int, float)) or not 0 <= self.alpha <= 1:
            raise UsageError(f"{self.name}: alpha={self.alpha!r} must lie in [0, 1]")
        for name in ("hidden", "embedding"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{self.name}: {name}={value!r} must be a whole number of at least 1")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.student}), teacher=frozenset({self.teacher}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = student[self.student], teacher[self.teacher]
        if own.shape[0] < self.smallest:
            raise UsageError(
                f"{self.name} needs at least {self.smallest} examples in a batch; this one has {own.shape[0]}"
            )
        widths = {"student": connect.width(own), "teacher": connect.width(target), "baseline": connect.width(target)}
        return {
            name: perceptron(width, self.hidden, 1 if name == "baseline" else self.embedding).to(own.device)
            for name, width in widths.items()
        }

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own = self._pooled(student[self.student], batch)
        target = self._pooled(teacher[self.teacher].detach(), batch)
        if own.shape[0] != target.shape[0]:
            raise UsageError(f"{self.name}: the student has {own.shape[0]} examples and the teacher {target.shape[0]}")
        if set(connectors) != {"student", "teacher", "baseline"}:
            raise UsageError(
                f"{self.name} needs its critic: hand over what objective.connectors(student, teacher) made"
            )
        own, target, weights = positions.present(batch, own, target)
        if len(own) < self.smallest:
            return positions.precise(own).sum() * 0
        with torch.autocast(own.device.type, enabled=False):
            ours, theirs = connectors["student"](own), connectors["teacher"](target)
            scores, log_baseline = theirs @ ours.transpose(0, 1), connectors["baseline"](target).squeeze(1)
        return -interpolated_bound(scores, log_baseline, self.alpha, weights)

    def _pooled(self, feature: Tensor, batch: Batch) -> Tensor:
        if self.pooling == "first" and feature.dim() == 3:
            feature = feature[:, 0]
        return positions.precise(connect.pool(feature, batch))


def perceptron(width: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden ReLU layers: (..., width) -> (..., outputs)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
