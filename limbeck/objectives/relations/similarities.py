"""Objectives on how similar the examples of a batch are to each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Connectors
from limbeck.objectives.checks import require_choice, require_positive, require_signal
from limbeck.objectives.examples import ExampleObjective, pair_weights
from limbeck.signals import LOGITS

LEAST = 1e-7  # the smallest similarity of two examples as an unnormalized probability


@dataclass(frozen=True)
class SimilarityDistillation(ExampleObjective):
    """The student keeps the teacher's similarities between the examples of a batch; no projector is needed.

    With the cosines s_ij of the student's and t_ij of the teacher's embeddings, over pairs of different examples:
    loss="kl":     L = mean over i of KL(softmax_j(t_ij / T) || softmax_j(s_ij / T))
    loss="mse":    L = mean over i != j of (s_ij - t_ij)^2
    loss="kernel": L = mean over i of KL(p_i || q_i),   p_j|i = (t_ij + 1) / sum_{k != i} (t_ik + 1), q of the s_ij alike (PKT)
    With the features in a row, not averaged, and all pairs:
    loss="gram":   L = mean over all i, j of (G_s - G_t)_ij^2,   G: the rows of Q Q^T scaled to length 1 (SP)

    temperature: of "kl" only. Shapes: embeddings (B, D_s) and (B, D_t); maps and sequences are averaged over their
    positions first (not for "gram"). Examples of weight 0 are neither rows nor candidates. The first batch must have at
    least 3 examples ("mse" and "gram": 2), else UsageError: a softmax over one candidate says nothing. A later, smaller
    rest of an epoch contributes 0.
    Source: "kl" follows Fang et al., "SEED", 2021, eq. 4-6, with the batch itself in place of a queue. "gram": Tung and Mori,
    "Similarity-Preserving Knowledge Distillation", 2019, eq. 2-4; public code agrees. "mse": the same idea on cosines, without
    the diagonal. "kernel": Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018,
    section 3, cosine kernel; the sum over i is a mean here. The authors' code also counts j = i and averages over all
    pairs, so its value is smaller by about the batch size. No factor T^2.
    """

    loss: str = "kl"
    temperature: float = 0.05
    student: str = LOGITS
    teacher: str = LOGITS

    def __post_init__(self) -> None:
        require_choice(self, "loss", self.loss, ("kl", "mse", "kernel", "gram"))
        require_positive(self, "temperature", self.temperature)
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)

    @property
    def smallest(self) -> int:
        """The fewest examples that can be compared."""
        return 3 if self.loss in ("kl", "kernel") else 2

    @property
    def flat(self) -> bool:
        """Whether features are laid out in a row rather than averaged."""
        return self.loss == "gram"

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        if self.loss == "gram":
            squared = (gram_rows(own) - gram_rows(target)).square()
            return positions.mean(squared, None if weights is None else weights.unsqueeze(0) * weights.unsqueeze(1))
        ours, theirs = divergences.cosine_similarities(own), divergences.cosine_similarities(target)
        if self.loss == "mse":
            return positions.mean((ours - theirs).square(), pair_weights(own, weights))
        pairs = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        if self.loss == "kernel":
            log_p, log_q = (log_neighbours(s, pairs) for s in (theirs, ours))
        else:
            log_p, log_q = (
                divergences.log_probabilities(s.masked_fill(~pairs, -torch.inf), self.temperature)
                for s in (theirs, ours)
            )
        return positions.mean(divergences.kl_divergence(log_p, log_q), weights)


def gram_rows(features: Tensor) -> Tensor:
    """Q Q^T with every row scaled to length 1: (B, D) to (B, B)."""
    return divergences.directions(features @ features.transpose(0, 1))


def log_neighbours(cosines: Tensor, pairs: Tensor) -> Tensor:
    """log p_j|i with p proportional to (cosine + 1) / 2, at least 1e-7, over the pairs: (B, B), -inf elsewhere."""
    return ((cosines + 1) / 2).clamp(min=LEAST).masked_fill(~pairs, 0).log().log_softmax(-1)
