"""What a code number probably is, given the others: a masked prior that restores lost ones, and the simple ways of filling a gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.models.layers import Block, check_sizes, initialize
from limbeck.objectives.base import Loss
from limbeck.objectives.divergences import cross_entropy, log_probabilities
from limbeck.training.procedures import Losses, Procedure, State


class IndexPrior(nn.Module):
    """A bidirectional transformer over a grid of code numbers: `forward(indices, lost)`, both (B, h, w) -> logits (B, h, w, K).

    What stands where `lost` is true is not read. Raises UsageError for a grid of another size.
    """

    def __init__(self, codes: int, height: int, width: int, hidden: int = 64, depth: int = 2, heads: int = 4):
        super().__init__()
        check_sizes("IndexPrior", hidden, heads, 0.0, codes=codes, height=height, depth=depth)
        self.grid, self.codes = (height, width), codes
        self.tokens = nn.Embedding(codes + 1, hidden)  # the last one: lost
        self.positions = nn.Embedding(height * width, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, 4 * hidden, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, codes)
        initialize(self, depth)

    def forward(self, indices: Tensor, lost: Tensor) -> Tensor:
        if tuple(indices.shape[1:]) != self.grid or lost.shape != indices.shape:
            raise UsageError(
                f"IndexPrior: code numbers {tuple(indices.shape)}, lost {tuple(lost.shape)}: the grid is {self.grid}"
            )
        tokens = indices.masked_fill(lost, self.codes).flatten(1)
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).unflatten(1, self.grid)

    @torch.no_grad()
    def fill(self, indices: Tensor, lost: Tensor, rounds: int = 1) -> Tensor:
        """The numbers with the lost ones restored by the most probable: (B, h, w). rounds: the surest 1/rounds of the lost ones are
        set each time and seen by those after them."""
        made, open_ = indices.clone(), lost.clone()
        for left in range(rounds, 0, -1):
            best = self(made, open_).log_softmax(-1).max(-1)
            sure = best.values.masked_fill(~open_, -torch.inf).flatten(1)
            count = (open_.flatten(1).sum(1) + left - 1) // left
            place = sure.argsort(1, descending=True).argsort(1)
            now = (place < count[:, None]).unflatten(1, self.grid) & open_
            made, open_ = torch.where(now, best.indices, made), open_ & ~now
        return made


class PredictLost(Procedure):
    """Train an `IndexPrior` to restore what is lost.

    L = mean over lost places of -log softmax(logits)[the number that was there],   each example loses a share drawn from `least`..`most`

    Batches: indices (B, h, w). Source: Mao et al., DCC 2024, section 3.3; Chang et al., "MaskGIT", 2022, eq. 1. The paper's code for it is not public.
    """

    def __init__(self, prior: IndexPrior, least: float = 0.05, most: float = 0.5):
        if not 0 < least <= most <= 1:
            raise UsageError(f"PredictLost: least={least!r}, most={most!r}: need 0 < least <= most <= 1")
        self.prior, self.least, self.most = prior, least, most
        self.modules = {"prior": prior}

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        indices = batch["indices"]
        share = self.least + (self.most - self.least) * torch.rand(len(indices), 1, 1, device=indices.device)
        lost = torch.rand(indices.shape, device=indices.device) < share
        lost.view(len(indices), -1)[:, 0] |= ~lost.flatten(1).any(1)  # at least one, so that the mean exists
        log_q = log_probabilities(self.prior(indices, lost)[lost])
        value = cross_entropy(log_q, indices[lost]).mean()
        return {"main": Loss(value, {"restored": value.detach()})}

    def model(self) -> nn.Module | None:
        return None


def fill_random(indices: Tensor, lost: Tensor, codes: int, generator: torch.Generator | None = None) -> Tensor:
    """Lost numbers replaced by any code: (B, h, w)."""
    return torch.where(lost, torch.randint(codes, indices.shape, generator=generator), indices)


def fill_nearest(indices: Tensor, lost: Tensor) -> Tensor:
    """Lost numbers replaced by that of the nearest place that arrived, in Euclidean distance, the upper left one of equals; 0 where
    nothing arrived. (B, h, w)"""
    _, height, width = indices.shape
    steps = [(y, x) for y in range(-height + 1, height) for x in range(-width + 1, width)]
    made, open_ = indices.masked_fill(lost, 0), lost.clone()
    for down, across in sorted(steps, key=lambda step: (step[0] ** 2 + step[1] ** 2, step)):
        rows, columns = _reach(height, down), _reach(width, across)
        to = (
            slice(None),
            slice(rows.start - down, rows.stop - down),
            slice(columns.start - across, columns.stop - across),
        )
        of = (slice(None), rows, columns)
        usable = open_[to] & ~lost[of]
        made[to] = torch.where(usable, indices[of], made[to])
        open_[to] = open_[to] & ~usable
    return made


def _reach(size: int, step: int) -> slice:
    return slice(max(step, 0), size + min(step, 0))
