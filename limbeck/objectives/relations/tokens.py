"""Objectives on the relations between the tokens of an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_signal
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class TokenRelations(Objective):
    """The tokens of a text or an image relate to each other in the student as they do in the teacher.

    A, B (B, L, D) are two signals of one model (the outputs of its query, key or value projections, or a hidden state),
    cut into `heads` vectors of width d = D / heads. With the scaled products S = A B^T / sqrt(d), (B, heads, L, L):
    loss="kl":   L = mean over heads and tokens i of KL(softmax_j(S_t)_i || softmax_j(S_s)_i)
    loss="mse":  L = mean over heads and pairs i, j of (S_t - S_s)_ij^2, the products themselves
    loss="maps": L = mean over heads and pairs i, j of (softmax_j(S_t) - softmax_j(S_s))_ij^2
    loss="direction": L = |S_t / |S_t| - S_s / |S_s||, norms over all examples, heads and pairs of the batch: their size does not matter

    student, teacher: one signal, related with itself, or two: ("PATH.query", "PATH.key") gives the attention maps,
    "PATH.value" the value relations; QQ and KK alike, of any layer. heads: relation heads, the same number in both
    models, whatever their own attention heads; widths and depths may differ, there is no projector. Several relations
    are a sum of several objectives. causal: a token relates to itself and those before it. A map (B, C, H, W) is read as the
    sequence of its places.

    Padding is neither a token i nor a token j; examples of weight 0 do not count.
    Raises UsageError for signals that are no sequences (B, L, D), of two lengths, or whose width `heads` does not divide.
    Source: Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained
    Transformers", 2020, eq. 7-9 (QK and VV); Wang et al., "MiniLMv2", 2021, eq. 4-6 (QQ, KK, VV, relation heads). "mse" on
    QK: Jiao et al., "TinyBERT", 2020, eq. 7. "maps" on a hidden state: Zhang et al., "Knowledge Distillation via Token-level
    Relationship Graph", 2023 (contextual loss). "direction" on QQ, KK and VV: Qin et al., "BiBERT", ICLR 2022, eq. 12 and 13
    (direction-matching distillation); the norm is not squared, as in the authors' code.
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
        require_choice(self, "loss", self.loss, ("kl", "mse", "maps", "direction"))

    @property
    def reads(self) -> Reads:
        return Reads(frozenset(_pair(self.student)), frozenset(_pair(self.teacher)))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        ours = [_sequence(student[name]) for name in _pair(self.student)]
        theirs = [_sequence(teacher[name].detach()) for name in _pair(self.teacher)]
        weights = self._weights([*ours, *theirs], batch)
        own, target = (self._products(*(positions.blank(x, weights) for x in pair)) for pair in (ours, theirs))
        pairs = self._pairs(own, weights)
        if self.loss == "direction":
            return divergences.direction_distance(own, target, pairs)
        if self.loss == "mse":
            return positions.mean((own - target).square(), pairs)
        if pairs is not None:
            own, target = (s.masked_fill(pairs == 0, torch.finfo(s.dtype).min) for s in (own, target))
        log_p, log_q = (divergences.log_probabilities(s) for s in (target, own))
        if self.loss == "maps":
            return positions.mean((log_p.exp() - log_q.exp()).square(), pairs)
        loss = divergences.kl_divergence(log_p, log_q).mean(1)
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


def _sequence(signal: Tensor) -> Tensor:
    """A map (B, C, H, W) as the sequence of its places (B, H W, C); anything else as it is."""
    return signal.movedim(1, -1).flatten(1, 2) if signal.dim() == 4 else signal
