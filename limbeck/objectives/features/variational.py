"""Variational information distillation: a hint whose every channel learns how exactly it can be met."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_connectors, require_positive
from limbeck.objectives.features.hints import _Projected
from limbeck.signals import Signals


@dataclass(frozen=True)
class VariationalHint(_Projected):
    """VID: the student's layer tells as much as it can about the teacher's, by a Gaussian bound on mutual information.

    L = mean over positions and channels c of  (t_c - m_c(s))^2 / (2 v_c) + 1/2 log v_c,   v_c = softplus(a_c) + 1e-5

    m: three 1x1 convolutions (linear layers for vectors and sequences) of the teacher's width with ReLU between; m and a are
    connectors, trained with the student. The loss may be negative. variance: what v_c starts as.
    Shapes: vectors (B, D), sequences (B, L, D) or maps (B, C, H, W), also in pairs of two layouts; padding does not count.
    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", 2019, section 2, without the constant. The
    paper sums over an example's entries; the mean here, as in public code, which agrees up to biases that it leaves out.
    """

    student: str
    teacher: str | None = None
    variance: float = 5.0
    resizing: str = "pool"

    projector = "auto"
    least = 1e-5  # of a variance

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "variance", self.variance)
        require_choice(self, "resizing", self.resizing, connect.RESIZINGS)

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = self.matched(student, teacher, {})
        widths = [connect.width(own)] + 3 * [connect.width(target)]
        layers = [nn.Conv2d(a, b, 1) if own.dim() == 4 else nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        mean = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        return {"projector": mean.to(own.device), "spread": Spread(widths[-1], self.variance).to(own.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        self.matched(student, teacher, batch)  # what is missing or does not fit is said first
        require_connectors(self, connectors, "projector", "spread")
        with torch.autocast(student[self.student].device.type, enabled=False):
            own, target, weights = self._pair(student, teacher, batch, connectors)
            variance = F.softplus(connectors["spread"].raw) + self.least
            loss = (own - positions.precise(target)).square() / (2 * variance) + 0.5 * variance.log()
        return positions.mean(loss.mean(-1), weights)


class Spread(nn.Module):
    """A learnable positive number per channel, as `softplus(raw)`; it starts as `start`."""

    def __init__(self, channels: int, start: float):
        super().__init__()
        self.raw = nn.Parameter(torch.full((channels,), start + math.log(-math.expm1(-start))))
