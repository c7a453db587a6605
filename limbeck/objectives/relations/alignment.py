"""Objectives on how two sets of features agree as a whole: kernel alignment, correlation, matrix entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Connectors
from limbeck.objectives.checks import require_choice, require_positive, require_signal
from limbeck.objectives.examples import ExampleObjective
from limbeck.signals import LOGITS, Signals

LEAST = 1e-12  # below it a sum under a logarithm is held


@dataclass(frozen=True)
class KernelAlignment(ExampleObjective):
    """Linear centred kernel alignment: the examples span the same shape in both features, up to rotation and scale.

    L = 1 - CKA,   CKA = |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F),   X (B, D_s), Y (B, D_t) with centred columns

    Shapes: embeddings of any widths; maps and sequences are averaged over their positions. Example weights enter the means
    and the sums. Needs 3 examples: a first batch of fewer is refused, a later one contributes 0. Features that are the
    same for all examples give CKA 0. For measuring whole data sets see `limbeck.measure.layer_similarities`.
    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, section 3 (linear kernel).
    """

    student: str = LOGITS
    teacher: str = LOGITS

    smallest = 3  # two centred examples are always aligned

    def __post_init__(self) -> None:
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        return 1 - linear_cka(own, target, weights)


def linear_cka(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """CKA of (B, D) and (B, E), see `KernelAlignment`: a scalar in [0, 1]. weights (B,): of the examples."""
    grams = (centred(v, weights) for v in (x, y))
    ours, theirs = (divergences.directions((c @ c.transpose(0, 1)).flatten()) for c in grams)
    return (ours * theirs).sum()


def centred(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Rows of (B, D) minus their weighted mean, scaled by the root of their weight, all divided by the largest entry."""
    if weights is None:
        moved = x - x.mean(0)
    else:
        weights = weights.to(x.dtype).unsqueeze(1)
        moved = (x - (weights * x).sum(0) / weights.sum()) * weights.sqrt()
    return moved / moved.detach().abs().amax().clamp(min=torch.finfo(x.dtype).tiny)


@dataclass(frozen=True)
class _Projected(ExampleObjective):
    """With a linear layer from the student's width to the teacher's: "linear" always, "auto" where they differ."""

    student: str = LOGITS
    teacher: str = LOGITS

    def __post_init__(self) -> None:
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)
        require_choice(self, "projector", self.projector, ("auto", "none", "linear"))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        super().connectors(student, teacher)
        own, target = connect.pool(student[self.student], {}), connect.pool(teacher[self.teacher], {})
        made = connect.projector(own, target, self.projector)
        return {} if made is None else {"projector": made}

    def projected(self, own: Tensor, target: Tensor, connectors: Connectors) -> Tensor:
        if "projector" in connectors:
            return connect.project(connectors["projector"], own)
        if self.projector == "linear" or own.shape[1] != target.shape[1]:
            raise UsageError(
                f"{self.name} needs its projector: hand over what objective.connectors(student, teacher) made"
            )
        return own


@dataclass(frozen=True)
class FeatureCorrelation(_Projected):
    """ITRD's correlation: every feature of the student, through a projector, correlates with the teacher's over the batch.

    L = log2 sum_i |c_i - 1|^(2 alpha),   c_i: Pearson correlation of feature i of student and teacher over the examples

    Shapes: embeddings (B, D_s), (B, D_t); maps and sequences are averaged over their positions. Needs 3 examples: a first
    batch of fewer is refused, a later one contributes 0. A feature that is the same for all examples has c_i = 0. The sum is held
    at 1e-12 from below, so a perfect student has the loss -39.9 and no gradient. projector: "linear" as in the paper; see
    `limbeck.objectives.connectors.projector`.
    Source: Miles et al., "Information Theoretic Representation Distillation", 2021, section 3 (alpha 1.01, weight 2). The authors' code
    divides by the unbiased deviation and by B, so a perfect match gives c_i = (B - 1) / B there; 1 here, as in the formula.
    """

    alpha: float = 1.01
    projector: str = "linear"

    smallest = 3  # two examples always correlate fully

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "alpha", self.alpha)

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        own = self.projected(own, target, connectors)
        ours, theirs = (divergences.directions(centred(x, weights).transpose(0, 1)) for x in (own, target))
        missing = ((ours * theirs).sum(-1) - 1).square()
        return missing.pow(self.alpha).sum().clamp(min=LEAST).log2()


@dataclass(frozen=True)
class GramInformation(_Projected):
    """ITRD's mutual information: the matrix entropy that the teacher's and the student's similarities share.

    L = -(S(G_s) - S(G_s o G_t)) = log2 |G_s|_F^2 - log2 |G_s o G_t|_F^2,   S(G) = -log2 tr G^2: Renyi's entropy of order 2

    minus the information I(G_s; G_t) = S(G_s) + S(G_t) - S(G_s o G_t), without S(G_t), which is constant. G: the matrix of
    cosines between the examples of the batch (B, B), of trace 1; o: the element-wise product, scaled to trace 1.
    logarithm=False: |G_s|_F^2 - |G_s o G_t|_F^2 in place of the difference of logarithms.

    Shapes: embeddings (B, D_s), (B, D_t); maps and sequences are averaged over their positions. Example weights scale rows
    and columns of G by their roots. Needs 2 examples: a first batch of fewer is refused, a later one contributes 0.
    projector: "auto", one where the widths differ; see `limbeck.objectives.connectors.projector`.
    Source: Miles et al., "Information Theoretic Representation Distillation", 2021, section 3 (weight 1). The authors' code has
    logarithm=False.
    """

    logarithm: bool = True
    projector: str = "auto"

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        ours = divergences.cosine_similarities(self.projected(own, target, connectors))
        joint = ours * divergences.cosine_similarities(target)
        masses = own.new_ones(len(own)) if weights is None else weights.to(own.dtype)
        alone, both = (_collision(g, masses).clamp(min=LEAST) for g in (ours, joint))
        return alone.log2() - both.log2() if self.logarithm else alone - both


def _collision(gram: Tensor, masses: Tensor) -> Tensor:
    """tr A^2 of A_ij = sqrt(m_i m_j) g_ij / sum_k m_k g_kk: a scalar."""
    total = (masses * gram.diagonal()).sum().clamp(min=LEAST)
    return (positions.precise(gram).square() * masses.unsqueeze(0) * masses.unsqueeze(1)).sum() / total.square()
