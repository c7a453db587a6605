"""Overhaul of feature distillation: what the teacher's ReLU lets through, and no more than a margin below it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_connectors, require_signal
from limbeck.objectives.features.hints import _Projected
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class MarginHint(_Projected):
    """OFD: the student imitates the teacher's feature before its ReLU where it is positive, and below only down to a margin.

    L = mean over positions and channels of  d(max(t, m_c), r(s)),   d(t, s) = (t - s)^2, or 0 where s <= t <= 0
    m_c = E[x | x < 0] = b_c - |g_c| phi(b_c / |g_c|) / Phi(-b_c / |g_c|),   x ~ Normal(b_c, g_c^2)

    g_c and b_c are weight and bias of the teacher's batch normalization before the ReLU; where fewer than one value in a
    thousand is negative, m_c = -3 |g_c|. r: a 1x1 convolution and batch normalization (a connector, always there).

    student, teacher: layers before the ReLU, with outputs (B, C, H, W); maps of two sizes are averaged to the smaller one.
    norm: path of the teacher's batch normalization; None: `teacher` itself is one (in residual networks with
    pre-activation the first of the next block). Examples of weight 0 do not enter r's statistics either.
    Raises UsageError for other layouts, and for statistics that do not fit.
    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", 2019, section 3. The paper sums over an example's map (weight
    1e-3, halved with every layer before the last); the mean here. The authors' code agrees.
    """

    student: str
    teacher: str | None = None
    norm: str | None = None

    projector = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_signal(self, "norm", self._norm)
        if ":" in self._norm:
            raise UsageError(f"{self.name}: norm={self._norm!r} must be a module's path, without a colon")

    @property
    def _norm(self) -> str:
        return self.norm or self.teacher or self.student

    @property
    def reads(self) -> Reads:
        return super().reads | Reads(teacher=frozenset({f"{self._norm}:weight", f"{self._norm}:bias"}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = self.matched(student, teacher, {})
        if own.dim() != 4:
            raise UsageError(f"{self.name} compares maps (B, C, H, W); the student's feature is {tuple(own.shape)}")
        made = nn.Sequential(nn.Conv2d(own.shape[1], target.shape[1], 1, bias=False), nn.BatchNorm2d(target.shape[1]))
        nn.init.kaiming_normal_(made[0].weight, mode="fan_out", nonlinearity="relu")
        return {"projector": made.to(own.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        scale, shift = (teacher[f"{self._norm}:{side}"].detach() for side in ("weight", "bias"))
        own, target = self.matched(student, teacher, batch)
        if target.dim() != 4 or scale.shape != target.shape[1:2]:
            raise UsageError(
                f"{self.name}: the teacher's feature {tuple(target.shape)} must be a map with a channel for each of the "
                f"{tuple(scale.shape)} statistics of {self._norm!r}: name the batch normalization before its ReLU"
            )
        require_connectors(self, connectors, "projector")
        own, target, weights = positions.present(batch, own, target)
        if not len(own):
            return positions.precise(own).sum() * 0
        with torch.autocast(own.device.type, enabled=False):
            own = connect.project(connectors["projector"], own)
            margin = negative_mean(positions.precise(shift), positions.precise(scale).abs())
            loss = partial_squares(own, positions.precise(target).maximum(margin[:, None, None]))
        return positions.mean(loss.mean((1, 2, 3)), weights)


def partial_squares(own: Tensor, target: Tensor) -> Tensor:
    """(t - s)^2, or 0 where s <= t <= 0, entry by entry."""
    return (own - target).square() * ((own > target) | (target > 0))


def negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of normal variables, element by element; -3 deviations where P(x < 0) is below 0.001."""
    ratio = mean / deviation.clamp(min=torch.finfo(mean.dtype).tiny)
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    return torch.where(below > 0.001, mean - deviation * density / below.clamp(min=1e-30), -3 * deviation)
