"""Objectives on relations: how the examples of a batch lie to each other, whatever the widths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_positive, require_signal
from limbeck.signals import LOGITS, Reads, Signals


@dataclass(frozen=True)
class SimilarityDistillation(Objective):
    """The student keeps the teacher's similarities between the examples of a batch; no projector is needed.

    With the cosines s_ij of the student's and t_ij of the teacher's embeddings, over pairs of different examples:
    loss="kl":   L = mean over i of KL(softmax_j(t_ij / T) || softmax_j(s_ij / T))
    loss="mse":  L = mean over i != j of (s_ij - t_ij)^2

    Shapes: embeddings (B, D_s) and (B, D_t); maps and sequences are averaged over their positions first. Examples of
    weight 0 are neither rows nor candidates. The first batch must have at least 3 examples ("mse": 2), else UsageError: a
    softmax over one candidate says nothing. A later, smaller rest of an epoch contributes 0.
    Source: "kl" follows Fang et al., "SEED", 2021, eq. 4-6, with the batch itself in place of a queue; "mse" follows Tung
    and Mori, "Similarity-Preserving Knowledge Distillation", 2019, eq. 4. Deviation: cosines of the embeddings without
    the diagonal; Tung and Mori normalize the rows of the Gram matrix and sum over the diagonal too. No factor T^2.
    """

    loss: str = "kl"
    temperature: float = 0.05
    student: str = LOGITS
    teacher: str = LOGITS

    def __post_init__(self) -> None:
        require_choice(self, "loss", self.loss, ("kl", "mse"))
        require_positive(self, "temperature", self.temperature)
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.student}), teacher=frozenset({self.teacher}))

    @property
    def smallest(self) -> int:
        """The fewest examples that can be compared."""
        return 3 if self.loss == "kl" else 2

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        size = student[self.student].shape[0]
        if size < self.smallest:
            raise UsageError(
                f"{self.name} compares at least {self.smallest} examples; the batch has {size}: use a larger batch_size"
            )
        return {}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = connect.pool(student[self.student], batch), connect.pool(teacher[self.teacher].detach(), batch)
        if own.shape[0] != target.shape[0]:
            raise UsageError(f"{self.name}: the student has {own.shape[0]} examples and the teacher {target.shape[0]}")
        weights = positions.weights(batch, own.shape[:1], labels=False)
        own, target = positions.blank(own, weights), positions.blank(target, weights)
        if (len(own) if weights is None else int((weights != 0).sum())) < self.smallest:
            return positions.mean(positions.precise(own) * 0)
        ours, theirs = divergences.cosine_similarities(own), divergences.cosine_similarities(target)
        pairs = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        if self.loss == "mse":
            both = pairs if weights is None else pairs * weights.unsqueeze(0) * weights.unsqueeze(1)
            return positions.mean((ours - theirs).square(), both.to(ours.dtype))
        if weights is not None:
            pairs = pairs & (weights != 0)
        log_p, log_q = (
            divergences.log_probabilities(s.masked_fill(~pairs, -torch.inf), self.temperature) for s in (theirs, ours)
        )
        return positions.mean(divergences.kl_divergence(log_p, log_q), weights)
