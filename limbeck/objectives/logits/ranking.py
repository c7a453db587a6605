"""Objectives on the order of the classes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.checks import require_positive
from limbeck.objectives.divergences import log_probabilities
from limbeck.objectives.logits.partitions import LabelledTargets, one_hot
from limbeck.objectives.positions import precise


def suffix_logsumexp(scores: Tensor) -> Tensor:
    """log sum_{l >= k} exp(s_l) for each place k of the last axis: (..., C) to (..., C)."""
    return scores.flip(-1).logcumsumexp(-1).flip(-1)


@dataclass(frozen=True)
class RankedTargets(LabelledTargets):
    """Plackett-Luce distillation: the student learns the teacher's whole ranking of the classes, each choice as weighty as it is sure.

    L = mean over positions of sum_k t_{o(k)} (log sum_{l >= k} exp(z_{o(l)}) - z_{o(k)})

    o: the true class first, then the others by falling teacher logits; t = softmax(z_t / T) of the teacher; z: the student's logits. A
    term is the cross-entropy of choosing o(k) among what is not yet chosen; the first is the cross-entropy with the label, weighted by
    the teacher's t_y, so it needs neither a `CrossEntropy` beside it nor a weight. Convex in z, and blind to a shift of z.

    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L). Raises UsageError for fewer than three classes.
    Source: Bassam et al., "PLD: A Choice-Theoretic List-Wise Knowledge Distillation", 2025; T = 1. No authors' code is public; an
    independent implementation for rankers of documents has the same weights and order.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        true = one_hot(labels, teacher.shape[-1])
        order = precise(teacher).masked_fill(true, torch.inf).argsort(dim=-1, descending=True, stable=True)
        scores = precise(student).gather(-1, order)
        weights = log_probabilities(teacher, self.temperature).exp().gather(-1, order)
        return (weights * (suffix_logsumexp(scores) - scores)).sum(-1)
