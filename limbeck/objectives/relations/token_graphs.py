"""Objectives on the graph that the tokens of a whole batch form, across images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import (
    require_choice,
    require_connectors,
    require_positive,
    require_whole,
)
from limbeck.objectives.layer_pair import LayerPair
from limbeck.signals import Signals


class _BatchTokens(LayerPair):
    """Tokens of a batch, those of one model beside those of the other; fields `student`, `teacher` and `tokens`.

    Layers are sequences (B, L, D) or maps (B, C, H, W), whose places are tokens; of two sizes the smaller one counts. Padding and
    examples of weight 0 are no tokens. Of all tokens `tokens` are drawn anew for every batch (all where there are no more).
    """

    smallest = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "tokens", self.tokens, 2)

    def _matched(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both features with the width last: (B, L, D) or (B, H, W, D)."""
        pair = self.pair(student, teacher)
        if 2 in {feature.dim() for feature in pair}:
            raise UsageError(
                f"{self.name} needs tokens: maps (B, C, H, W) or sequences (B, L, D), not "
                f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
            )
        return tuple(x.movedim(1, -1) if x.dim() == 4 else x for x in self.matched(student, teacher, batch))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = self._matched(student, teacher, batch)
        weights = positions.weights(batch, own.shape[:-1], labels=False)
        own, target = (positions.blank(x, weights).flatten(0, -2) for x in (own, target))
        if weights is not None:
            weights = weights.flatten()
            there = (weights != 0).nonzero().squeeze(1)
            own, target, weights = own[there], target[there], weights[there]
        if len(own) > self.tokens:
            drawn = torch.randperm(len(own), device=own.device)[: self.tokens]
            own, target, weights = own[drawn], target[drawn], None if weights is None else weights[drawn]
        if len(own) < self.smallest:
            return positions.precise(own).sum() * 0
        with torch.autocast(own.device.type, enabled=False):
            loss = self.compare(positions.precise(own), positions.precise(target), batch, connectors)
        return positions.mean(loss, weights)

    def compare(self, own: Tensor, target: Tensor, batch: Batch, connectors: Connectors) -> Tensor:
        """The loss of each token: (N, D_s) and (N, D_t) to (N,)."""
        raise NotImplementedError


@dataclass(frozen=True)
class TokenGraph(_BatchTokens):
    """TRG's local loss: tokens, of whatever image, have the neighbours that they have in the teacher.

    L = mean over tokens i of KL(softmax_j(A^s_ij) || softmax_j(A^t_ij))
    A_ij = exp(-|x_i - x_j|^2 / (2 sigma m)) where j is among the `neighbours` nearest tokens of i, else 0;   m: the mean of
    |x_i - x_j|^2 over all pairs i != j

    direction: "reverse" has the student first, as above; "forward" the teacher. Layers, padding and draws: sequences (B, L, D) or
    maps (B, C, H, W) of any widths; `tokens` of the batch's tokens are drawn, the same of both models.
    Raises UsageError for vectors.
    Source: Zhang et al., "Knowledge Distillation via Token-level Relationship Graph", 2023 (local preserving loss; no public code, read:
    public notes with the equations). Deviations: m, so that sigma means the same for features of every width and scale; the mean
    over tokens for the sum. neighbours, sigma and tokens are not given there.
    """

    student: str
    teacher: str | None = None
    neighbours: int = 8
    sigma: float = 1.0
    tokens: int = 512
    direction: str = "reverse"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "neighbours", self.neighbours)
        require_positive(self, "sigma", self.sigma)
        require_choice(self, "direction", self.direction, ("reverse", "forward"))

    def compare(self, own: Tensor, target: Tensor, batch: Batch, connectors: Connectors) -> Tensor:
        ours, theirs = (
            divergences.log_probabilities(neighbour_graph(x, self.neighbours, self.sigma)) for x in (own, target)
        )
        return divergences.kl_divergence(*((ours, theirs) if self.direction == "reverse" else (theirs, ours)))


def neighbour_graph(x: Tensor, neighbours: int, sigma: float) -> Tensor:
    """A of `TokenGraph`: (N, D) to (N, N), N at least 2, row i holding the nearest of i; itself is none of them."""
    count = len(x)
    x = x - x.mean(0)
    lengths = x.square().sum(1)
    itself = torch.eye(count, dtype=torch.bool, device=x.device)
    squared = (lengths.unsqueeze(0) + lengths.unsqueeze(1) - 2 * x @ x.transpose(0, 1)).clamp(min=0)
    squared = squared.masked_fill(itself, 0)
    scale = squared.sum() / (count * (count - 1))
    nearest = squared.detach().masked_fill(itself, torch.inf).topk(min(neighbours, count - 1), largest=False).indices
    linked = torch.zeros_like(itself).scatter(1, nearest, True)
    return torch.exp(-squared / (2 * sigma * scale.clamp(min=torch.finfo(x.dtype).tiny))) * linked


@dataclass(frozen=True)
class TokenContrast(_BatchTokens):
    """TRG's global loss: a token of the student is told from the batch's other tokens by the teacher's token in its place.

    L = mean over tokens i of -log softmax_j(cos(g(s_i), t_j) / temperature)_i

    g: a linear layer to the teacher's width (a connector, always there). With `epochs`, the temperature goes from `temperature`
    to `final` in a straight line over so many epochs (coarse to fine). Layers, padding and draws: as `TokenGraph`. A batch of one token
    contributes 0. Raises UsageError for vectors.
    Source: Zhang et al., "Knowledge Distillation via Token-level Relationship Graph", 2023 (global contrastive loss; no public code, read:
    public notes with the equations). Temperatures are not given there.
    """

    student: str
    teacher: str | None = None
    temperature: float = 0.5
    final: float = 0.1
    epochs: float | None = None
    tokens: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)
        require_positive(self, "final", self.final)
        if self.epochs is not None:
            require_positive(self, "epochs", self.epochs)

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = self._matched(student, teacher, {})
        return {"projector": nn.Linear(own.shape[-1], target.shape[-1]).to(own.device)}

    def compare(self, own: Tensor, target: Tensor, batch: Batch, connectors: Connectors) -> Tensor:
        require_connectors(self, connectors, "projector")
        ours = divergences.directions(connect.project(connectors["projector"], own))
        scores = ours @ divergences.directions(target).transpose(0, 1) / self._temperature(batch)
        return F.cross_entropy(scores, torch.arange(len(own), device=own.device), reduction="none")

    def _temperature(self, batch: Batch) -> float:
        if self.epochs is None:
            return self.temperature
        if "epoch" not in batch:
            raise UsageError(f"{self.name} needs batch['epoch'], which training sets; the batch has {sorted(batch)}")
        share = min(1.0, float(batch["epoch"]) / self.epochs)
        return self.temperature + share * (self.final - self.temperature)
