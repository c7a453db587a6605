"""Objectives on relations: how examples, or the tokens of an example, lie to each other, whatever the widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
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


@dataclass(frozen=True)
class TokenRelations(Objective):
    """The tokens of a text or an image relate to each other in the student as they do in the teacher.

    A, B (B, L, D) are two signals of one model (the outputs of its query, key or value projections, or a hidden state),
    cut into `heads` vectors of width d = D / heads. With the scaled products S = A B^T / sqrt(d), (B, heads, L, L):
    loss="kl":   L = mean over heads and tokens i of KL(softmax_j(S_t)_i || softmax_j(S_s)_i)
    loss="mse":  L = mean over heads and pairs i, j of (S_t - S_s)_ij^2, the products themselves

    student, teacher: one signal, related with itself, or two: ("PATH.query", "PATH.key") gives the attention maps,
    "PATH.value" the value relations; QQ and KK alike, of any layer. heads: relation heads, the same number in both
    models, whatever their own attention heads; widths and depths may differ, there is no projector. Several relations
    are a sum of several objectives. causal: a token relates to itself and those before it.

    Padding is neither a token i nor a token j; examples of weight 0 do not count.
    Raises UsageError for signals that are no sequences (B, L, D), of two lengths, or whose width `heads` does not divide.
    Source: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", 2020, eq. 7-9 (QK and VV); Wang et al., "MiniLMv2", 2021, eq. 4-6 (QQ, KK, VV, relation heads). "mse" on
    QK: Jiao et al., "TinyBERT", 2020, eq. 7.
    """

    student: str | Sequence[str]
    teacher: str | Sequence[str]
    heads: int
    loss: str = "kl"
    causal: bool = False

    def __post_init__(self) -> None:
        for name in ("student", "teacher"):
            value = getattr(self, name)
            pair = (value,) if isinstance(value, str) else tuple(value)
            if len(pair) not in (1, 2):
                raise UsageError(f"{self.name}: {name}={value!r} must name one signal, or two to be related")
            for signal in pair:
                require_signal(self, name, signal)
            object.__setattr__(self, name, value if isinstance(value, str) else pair)
        if isinstance(self.heads, bool) or not isinstance(self.heads, int) or self.heads < 1:
            raise UsageError(f"{self.name}: heads={self.heads!r} must be a whole number of at least 1")
        require_choice(self, "loss", self.loss, ("kl", "mse"))

    @property
    def reads(self) -> Reads:
        return Reads(frozenset(_pair(self.student)), frozenset(_pair(self.teacher)))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        ours = [student[name] for name in _pair(self.student)]
        theirs = [teacher[name].detach() for name in _pair(self.teacher)]
        weights = self._weights([*ours, *theirs], batch)
        own, target = (self._products(*(positions.blank(x, weights) for x in pair)) for pair in (ours, theirs))
        pairs = self._pairs(own, weights)
        if self.loss == "mse":
            return positions.mean((own - target).square(), pairs)
        if pairs is not None:
            own, target = (s.masked_fill(pairs == 0, torch.finfo(s.dtype).min) for s in (own, target))
        loss = divergences.kl_divergence(*(divergences.log_probabilities(s) for s in (target, own))).mean(1)
        return positions.mean(loss, weights)

    def _weights(self, signals: Sequence[Tensor], batch: Batch) -> Tensor | None:
        shape = tuple(signals[0].shape[:2])
        for x in signals:
            if x.dim() != 3 or tuple(x.shape[:2]) != shape or x.shape[2] % self.heads:
                raise UsageError(
                    f"{self.name} relates sequences (B, L, D) of the same tokens, cut into {self.heads} heads; the signals "
                    f"have the shapes {', '.join(str(tuple(s.shape)) for s in signals)}"
                )
        return positions.weights(batch, shape, labels=False)

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """A B^T / sqrt(d) of (B, L, D): (B, heads, L, L), float32 also inside autocast."""
        left, right = (positions.precise(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (left, right))
        with torch.autocast(left.device.type, enabled=False):
            return left @ right.transpose(-1, -2) / math.sqrt(left.shape[-1])

    def _pairs(self, products: Tensor, weights: Tensor | None) -> Tensor | None:
        """What a pair of tokens counts, (B, heads, L, L); None when all count the same."""
        length = products.shape[-1]
        pairs = None if weights is None else weights[:, None, :, None] * (weights != 0)[:, None, None, :]
        if self.causal:
            past = torch.ones(length, length, device=products.device).tril()
            pairs = past if pairs is None else pairs * past
        return None if pairs is None else pairs.to(products.dtype).expand_as(products)


def _pair(signals: str | Sequence[str]) -> tuple[str, str]:
    """The two signals that are related: one name stands for both."""
    return (signals, signals) if isinstance(signals, str) else (signals[0], signals[-1])
