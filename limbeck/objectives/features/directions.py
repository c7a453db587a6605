"""Objectives that pull features towards the teacher's mean of their class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, true_classes
from limbeck.objectives.features.hints import _Projected
from limbeck.signals import Reads, Signals

CLASS_MEAN = "class_mean"  # the signal of `limbeck.teachers.ClassMeans`


@dataclass(frozen=True)
class NormDirection(_Projected):
    """ND loss: features point where the teacher's mean of their class points, and grow as long as the teacher's.

    L = mean over examples of  1 - <r(s), e_y> / max(|r(s)|, |t|),   e_y = c_y / |c_y|, c_y: the teacher's mean feature of the class

    While r(s) is shorter than t the denominator is constant and length is rewarded; beyond, it is the cosine distance.
    norm=False is that cosine distance to e_y alone. r: identity, or a linear layer (a connector) where the widths differ.
    average="classes": the mean over the batch's classes of the mean within a class.

    student, teacher: the features before the classifier; maps and sequences are averaged over their positions. The teacher
    must also yield "class_mean" (B, D): wrap it in `limbeck.teachers.ClassMeans`. Shapes: (B, D_s) and (B, D).
    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", 2023, section 3.3 (weights 0.5
    to 2 beside labels and soft targets). The authors' code is the default; averaging within classes first is how the
    formula is written, without the constant 1.
    """

    student: str
    teacher: str | None = None
    norm: bool = True
    average: str = "examples"
    projector: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "average", self.average, ("examples", "classes"))
        require_choice(self, "projector", self.projector, ("auto", "none", "linear"))

    @property
    def reads(self) -> Reads:
        return super().reads | Reads(teacher=frozenset({CLASS_MEAN}))

    def matched(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        pair = self.pair(student, teacher)
        return tuple(connect.pool(feature, batch) for feature in pair)

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        made = super().connectors(student, teacher)
        self._means(teacher, self.matched(student, teacher, {})[1])
        return made

    def _means(self, teacher: Signals, target: Tensor) -> Tensor:
        means = teacher[CLASS_MEAN].detach()
        if means.shape != target.shape:
            raise UsageError(
                f"{self.name}: the class means have the shape {tuple(means.shape)} and the teacher's features "
                f"{tuple(target.shape)}: compute the means of the same signal"
            )
        return means

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        with torch.autocast(student[self.student].device.type, enabled=False):
            own, target, weights = self._pair(student, teacher, batch, connectors)
            own = positions.precise(own)
            towards = divergences.directions(positions.blank(self._means(teacher, target), weights))
            along, length = (own * towards).sum(-1), torch.linalg.vector_norm(own, dim=-1)
            if self.norm:
                length = length.maximum(torch.linalg.vector_norm(positions.precise(target), dim=-1))
            share = torch.where(length > 0, along / torch.where(length > 0, length, 1.0), 0.0)
        if self.average == "classes":
            weights = _within_classes(true_classes(self, batch, own), weights)
        return positions.mean(1 - share, weights)


def _within_classes(classes: Tensor, weights: Tensor | None) -> Tensor:
    """Weights (B,) with which every class of the batch counts alike."""
    same = (classes.unsqueeze(0) == classes.unsqueeze(1)).float()
    if weights is None:
        return 1 / same.sum(1)
    masses = same @ weights
    return torch.where(masses > 0, weights / torch.where(masses > 0, masses, 1.0), 0.0)
