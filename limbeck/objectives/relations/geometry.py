"""Relational distillation: the distances and angles between the examples of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Connectors
from limbeck.objectives.checks import require_positive, require_signal
from limbeck.objectives.examples import ExampleObjective, pair_weights
from limbeck.signals import LOGITS


@dataclass(frozen=True)
class _Geometry(ExampleObjective):
    student: str = LOGITS
    teacher: str = LOGITS
    delta: float = 1.0

    smallest = 3  # with two, every distance is the mean distance and there is no angle

    def __post_init__(self) -> None:
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)
        require_positive(self, "delta", self.delta)


@dataclass(frozen=True)
class DistanceRelations(_Geometry):
    """RKD-D: the distances between examples, in units of their mean, are the teacher's.

    L = mean over i != j of huber(d^s_ij, d^t_ij),   d_ij = |x_i - x_j| / mean over i != j of |x_i - x_j|
    huber(a, b) = 1/2 (a - b)^2 where |a - b| <= delta, else delta (|a - b| - delta / 2)

    Shapes: embeddings (B, D_s) and (B, D_t) of any widths; maps and sequences are averaged over their positions. Needs 3
    examples: a first batch of fewer is refused, a later one contributes 0. Weights of pairs are products of those of examples.
    Source: Park et al., "Relational Knowledge Distillation", 2019, section 3.2.1; weight 1 in metric learning, 25 beside labels. The
    paper sums over pairs of distinct examples; the mean here. The authors' code averages over all B^2 pairs, the zero
    diagonal included: its value is (B - 1) / B of this.
    """

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        pairs = pair_weights(own, weights)
        ours, theirs = relative_distances(own, pairs), relative_distances(target, pairs)
        return positions.mean(F.huber_loss(ours, theirs, reduction="none", delta=self.delta), pairs)


@dataclass(frozen=True)
class AngleRelations(_Geometry):
    """RKD-A: the angles that any three examples form are the teacher's.

    L = mean over distinct i, j, k of huber(a^s_ijk, a^t_ijk),   a_ijk = cos of the angle at x_j between x_i and x_k

    Where two of the three are the same point the cosine is 0. huber, shapes, sizes and weights: as `DistanceRelations`.
    It holds (B, B, D) differences and (B, B, B) cosines.
    Source: Park et al., "Relational Knowledge Distillation", 2019, section 3.2.2; weight 2 in metric learning, 50 beside labels. The
    paper sums over triplets of distinct examples; the mean here. The authors' code averages over all B^3 triplets, the
    degenerate ones included: its value is (B - 1)(B - 2) / B^2 of this.
    """

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        loss = F.huber_loss(angles(own), angles(target), reduction="none", delta=self.delta)
        pairs = pair_weights(own, None)
        triplets = pairs[:, :, None] * pairs[:, None, :] * pairs[None]
        if weights is not None:
            triplets = triplets * weights[:, None, None] * weights[None, :, None] * weights[None, None, :]
        return positions.mean(loss, triplets)


def relative_distances(x: Tensor, pairs: Tensor) -> Tensor:
    """The distances between the rows of (B, D), divided by their mean over the pairs (weights (B, B)): (B, B)."""
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances / positions.mean(distances, pairs).clamp(min=torch.finfo(x.dtype).tiny)


def angles(x: Tensor) -> Tensor:
    """a_jik = cos of the angle at x_j between x_i and x_k of (B, D): (B, B, B), the vertex first."""
    towards = divergences.directions(x.unsqueeze(0) - x.unsqueeze(1))  # [j, i] = direction of x_i - x_j
    return towards @ towards.transpose(1, 2)
