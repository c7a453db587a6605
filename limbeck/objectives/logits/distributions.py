"""Objectives on the whole distribution over classes: other divergences than the forward Kullback-Leibler one.

p is the teacher's distribution and q the student's, softmax(z / T), position by position. Forward KL(p || q) spreads the student over all that
the teacher holds possible; reverse KL(q || p) keeps it to what the teacher holds likely; the others lie between.
The factor T^2, which keeps the gradient's size independent of T, is in every loss here whose size falls with T^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences
from limbeck.objectives.checks import require_choice, require_positive, require_whole
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.objectives.logits.partitions import LabelledTargets
from limbeck.objectives.logits.targets import TeacherTargets


def log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(a p + (1 - a) q) for a share a in (0, 1), without leaving log space: (..., C) of both to (...,C)."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def jensen_shannon(log_p: Tensor, log_q: Tensor, beta: float = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q: (..., C) to (...), between 0 and the entropy of beta."""
    log_m = log_mixture(log_p, log_q, beta)
    return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)


def total_variation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """1/2 sum_i |p_i - q_i| of log-probabilities (..., C): (...), between 0 and 1."""
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def summands(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p_i log(p_i / q_i) - p_i + q_i, at least 0 for every class: log-probabilities (..., C) of both to (..., C); they sum to KL(p || q)."""
    least = torch.finfo(log_p.dtype).min
    p = log_p.exp()
    return p * (log_p.clamp(min=least) - log_q.clamp(min=least)) - p + log_q.exp()


def head_gaps(log_p: Tensor, log_q: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """sum |p - q| over the teacher's head and over its tail: (..., C) to two of (...).

    The head are the likeliest classes, in the teacher's order, that together hold at least `mass`; the tail are the others.
    """
    p, order = log_p.exp().sort(dim=-1, descending=True, stable=True)
    gap = (p - log_q.exp().gather(-1, order)).abs()
    head = p.cumsum(-1) - p < mass  # the mass before a class is not yet enough
    return (gap * head).sum(-1), (gap * ~head).sum(-1)


@dataclass(frozen=True)
class _Tempered(TeacherTargets):
    """Both distributions softened by one temperature; subclasses compare log-probabilities."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """Log-probabilities of teacher and student (..., C) to (...)."""
        raise NotImplementedError

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_q = (log_probabilities(z, self.temperature) for z in (teacher, student))
        return self.temperature**2 * self.divergence(log_p, log_q)


@dataclass(frozen=True)
class ReverseKL(_Tempered):
    """Reverse Kullback-Leibler divergence: the student keeps to what the teacher holds likely (mode seeking).

    L = T^2 mean over positions of KL(q || p)

    Shapes: logits (B, C) or (B, L, C). Source: Gu et al., "MiniLLM", 2024 (there over sequences that the student samples; here
    position by position on the data, as a divergence).
    """

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return kl_divergence(log_q, log_p)


@dataclass(frozen=True)
class SymmetricKL(_Tempered):
    """A weighted sum of both directions.

    L = T^2 mean over positions of w KL(p || q) + (1 - w) KL(q || p),   w = `forward`

    forward = 1 is `SoftTargets`, 0 is `ReverseKL`; 0.5 is half of Jeffreys' divergence. Shapes: logits (B, C) or (B, L, C).
    """

    forward: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.forward <= 1:
            raise UsageError(f"SymmetricKL: forward={self.forward!r} must be in [0, 1]")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return self.forward * kl_divergence(log_p, log_q) + (1 - self.forward) * kl_divergence(log_q, log_p)


@dataclass(frozen=True)
class JensenShannon(_Tempered):
    """Generalized Jensen-Shannon divergence, bounded and finite whatever the distributions.

    L = T^2 mean over positions of b KL(p || m) + (1 - b) KL(q || m),   m = b p + (1 - b) q

    L / b tends to KL(p || q) for b -> 0, and L / (1 - b) to KL(q || p) for b -> 1. Shapes: logits (B, C) or (B, L, C).
    Source: Agarwal et al., "On-Policy Distillation of Language Models" (GKD), 2024; Huszar, 2015. Deviation: code of that name
    returns the unscaled forward or reverse KL at b = 0 and 1, where the formula is 0; here b lies strictly between, and
    `SoftTargets` and `ReverseKL` are those ends.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < 1:
            raise UsageError(
                f"JensenShannon: beta={self.beta!r} must lie strictly between 0 and 1; its ends are SoftTargets and ReverseKL"
            )

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        return jensen_shannon(log_p, log_q, self.beta)


@dataclass(frozen=True)
class SkewKL(_Tempered):
    """Skewed Kullback-Leibler divergence: one side is compared with a mixture of both, so no ratio explodes.

    forward:  L = T^2 mean of KL(p || a p + (1 - a) q)          reverse:  L = T^2 mean of KL(q || a q + (1 - a) p)

    a = 0 is plain KL. The paper's a is 0.1. direction: "forward" or "reverse". Shapes: logits (B, C) or (B, L, C).
    Source: Ko et al., "DistiLLM", 2024. Deviation: the authors' forward form leaves out the teacher's entropy (the same gradient,
    another value); here it is the divergence, 0 for a perfect student.
    """

    skew: float = 0.1
    direction: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "direction", self.direction, ("forward", "reverse"))
        if not 0 <= self.skew < 1:
            raise UsageError(f"SkewKL: skew={self.skew!r} must be in [0, 1): at 1 nothing is compared")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        first, other = (log_p, log_q) if self.direction == "forward" else (log_q, log_p)
        return kl_divergence(first, log_mixture(first, other, self.skew) if self.skew else other)


@dataclass(frozen=True)
class TotalVariation(_Tempered):
    """Total variation distance: symmetric, between 0 and 1, and 1 minus the chance that speculative decoding accepts a token.

    L = mean over positions of 1/2 sum_i |p_i - q_i|

    Its gradient falls with T, not T^2, and carries no factor for it. Shapes: logits (B, C) or (B, L, C).
    Source: Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", 2023.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return total_variation(*(log_probabilities(z, self.temperature) for z in (teacher, student)))


@dataclass(frozen=True)
class AdaptiveKL(_Tempered):
    """Forward and reverse KL, weighted position by position by where the student is wrong.

    L = T^2 mean over positions of (g_head KL(p || q) + g_tail KL(q || p)) / (g_head + g_tail)

    g_head, g_tail: sum |p - q| over the classes that hold the first `mass` of the teacher's probability, and over the others; both
    without gradient. Forward KL fits the head first, reverse KL the tail. Where both agree exactly, the weights are a half each.
    Shapes: logits (B, C) or (B, L, C). Source: Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large
    Language Models", 2024; mass 0.5; the authors' code agrees.
    """

    mass: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.mass < 1:
            raise UsageError(f"AdaptiveKL: mass={self.mass!r} must lie strictly between 0 and 1")

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        with torch.no_grad():
            head, tail = head_gaps(log_p, log_q, self.mass)
            total = head + tail
            weight = torch.where(total > 0, head / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
        return weight * kl_divergence(log_p, log_q) + (1 - weight) * kl_divergence(log_q, log_p)


@dataclass(frozen=True)
class TopKTargets(_Tempered):
    """The teacher's k likeliest classes and the rest of its distribution, each with a divergence of its own direction.

    L = T^2 mean over positions of D_head(top k) + w D_rest(the others),   w = `weight`

    forward: D(S) = sum_{i in S} p_i log(p_i / q_i) - p_i + q_i        reverse: D(S) = sum_{i in S} q_i log(q_i / p_i) - q_i + p_i

    The linear terms make every summand at least 0, and 0 only where q_i = p_i, so that no part of the classes can be made cheap at the cost of
    the other; over all classes they cancel: both forward and w = 1 is `SoftTargets`, both reverse `ReverseKL`. Where classes are sampled
    from the top k, these are the explicit knowledge and must be covered (forward); of the long tail, the implicit one, the student is to take
    no more than there is (reverse). Shapes: logits (B, C) or (B, L, C). Raises UsageError for k that leaves nothing beside it.
    Source: Ding et al., "Dissecting Bit-Level Scaling Laws in Quantizing Vision Generative Models" (TopKLD), 2025. No public source that could be
    read gives the formula: the directions, the linear terms and w are ours, from its description as a balance of both kinds of knowledge.
    """

    k: int = 10
    head: str = "forward"
    rest: str = "reverse"
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "k", self.k)
        require_choice(self, "head", self.head, ("forward", "reverse"))
        require_choice(self, "rest", self.rest, ("forward", "reverse"))
        require_positive(self, "weight", self.weight)

    def divergence(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        if self.k >= log_p.shape[-1]:
            raise UsageError(f"TopKTargets: k={self.k} leaves no rest of {log_p.shape[-1]} classes")
        chosen = torch.zeros_like(log_p, dtype=torch.bool).scatter_(-1, log_p.topk(self.k, dim=-1).indices, True)
        terms = {"forward": lambda: summands(log_p, log_q), "reverse": lambda: summands(log_q, log_p)}
        made = {direction: terms[direction]() for direction in {self.head, self.rest}}
        return torch.where(chosen, made[self.head], self.weight * made[self.rest]).sum(-1)


@dataclass(frozen=True)
class TransformedTargets(_Tempered):
    """Transformed teacher matching: only the teacher is softened, so that the student's own sharpness is trained as well.

    L = mean over positions of w KL(softmax(z_t / T) || softmax(z_s)),   w = 1, or with `weighted` w = sum_i p_i^(1 / T), p = softmax(z_t)

    Against soft targets this adds a regularizer on the student's Renyi entropy. w is larger where the teacher is unsure.
    Shapes: logits (B, C) or (B, L, C). Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching",
    ICLR 2024 (TTM and, weighted, WTTM). Neither carries T^2; the authors' code agrees.
    """

    temperature: float = 4.0
    weighted: bool = False

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        loss = kl_divergence(log_probabilities(teacher, self.temperature), log_probabilities(student))
        if not self.weighted:
            return loss
        return loss * (log_probabilities(teacher) / self.temperature).exp().sum(-1)


@dataclass(frozen=True)
class WeightedSoftTargets(LabelledTargets):
    """Weighted soft labels: less of the teacher where the student fits the label well compared with the teacher.

    L = T^2 mean over positions of (1 - exp(-CE_s / CE_t)) KL(softmax(z_t / T) || softmax(z_s / T))

    CE_s, CE_t: cross-entropies with the true class at T = 1, without gradient. Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L).
    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021; T = 2.
    Deviation: KL in place of the soft cross-entropy: the same gradient, 0 for a perfect student.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_p, log_q = (log_probabilities(z, self.temperature) for z in (teacher, student))
        with torch.no_grad():
            own, other = (divergences.cross_entropy(log_probabilities(z), labels) for z in (student, teacher))
            weight = -torch.expm1(-own / other.clamp_min(torch.finfo(own.dtype).tiny))
        return self.temperature**2 * weight * kl_divergence(log_p, log_q)
