"""Objectives on pairs: two texts, or views, that mean the same find each other among the others of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_positive, require_signal
from limbeck.objectives.divergences import normalized
from limbeck.signals import LOGITS, Reads, Signals


@dataclass(frozen=True)
class PairedContrast(Objective):
    """Each member of a pair is told from all other examples' second members, both ways round (CLIP).

    S_ij = scale cos(a_i, b_j);   L = 1/2 mean_i [-log softmax(S_i.)_i - log softmax(S_.i)_i]

    signal: embeddings of pairs (B, 2, D), a = [:, 0] and b = [:, 1]; an exit of a layer is named like any signal. scale: inverse
    temperature of the cosines. Examples of weight 0 are not there; other weights weigh the mean. Raises UsageError for a batch of one
    pair: there is nothing to tell it from; where weights leave fewer than two, the loss is 0.
    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), 2021, section 2.3; with scale
    10 at every exit Gurioli et al., "One Model to Train them All" (ModularStarEncoder), 2025. Deviation: the scale is not learned.
    """

    signal: str = LOGITS
    scale: float = 10.0

    def __post_init__(self) -> None:
        require_signal(self, "signal", self.signal)
        require_positive(self, "scale", self.scale)

    @property
    def name(self) -> str:
        return f"PairedContrast({self.signal})"

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.signal}))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        pairs = student[self.signal]
        if pairs.dim() != 3 or pairs.shape[1] != 2 or pairs.shape[0] < 2:
            raise UsageError(
                f"{self.name}: embeddings of shape {tuple(pairs.shape)}; they must be (batch, 2, width), two pairs or more"
            )
        weights = positions.weights(batch, pairs.shape[:1], labels=False)
        if weights is not None:
            there = weights != 0
            pairs, weights = positions.blank(pairs, weights)[there], weights[there]
        if len(pairs) < 2:
            return positions.precise(pairs).sum() * 0
        with torch.autocast(pairs.device.type, enabled=False):
            first, second = normalized(pairs).unbind(1)
            scores = self.scale * first @ second.transpose(0, 1)
        own = torch.arange(len(pairs), device=pairs.device)
        losses = [F.cross_entropy(s, own, reduction="none") for s in (scores, scores.transpose(0, 1))]
        return positions.mean(0.5 * (losses[0] + losses[1]), weights)
