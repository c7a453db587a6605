"""Deleting tokens inside an encoder: gates that score tokens, and the removal of those below the threshold.

A gate answers hidden states (B, L, width) with G (B, L) between `floor` and 0: 0 keeps a token, `floor` deletes it. Softly, G is
added to the attention scores of every later layer; hard, tokens with G < floor / 2 are taken out of the sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError

FLOOR = -30.0


class DeleteGate(nn.Module):
    """A learnt gate: G = floor sigmoid(-(w . LN(h) + b)).  (B, L, width) -> (B, L)

    Source: Kallini et al., "MrT5: Dynamic Token Merging for Efficient Byte-level Language Models", 2025, eq. 2; floor = -30;
    the sign inside the sigmoid is that of the authors' code. Deviation: b starts at 2, where nearly every token is kept.
    """

    def __init__(self, width: int, floor: float = FLOOR):
        super().__init__()
        if not floor < 0:
            raise UsageError(
                f"DeleteGate: floor={floor!r} must be below 0: it is added to the scores of deleted tokens"
            )
        self.floor = floor
        self.norm = nn.LayerNorm(width)
        self.weight = nn.Linear(width, 1)
        self.start()

    def start(self) -> None:
        """The first weights: nearly every token is kept."""
        nn.init.normal_(self.weight.weight, std=0.02)
        nn.init.constant_(self.weight.bias, 2.0)

    def forward(self, h: Tensor) -> Tensor:
        return self.floor * torch.sigmoid(-self.weight(self.norm(h)).squeeze(-1).float())


class FixedGate(nn.Module):
    """Deletes the same share of every text, whatever stands there: of `rate` = 1 / 2, every second token ("stride"), or tokens
    drawn anew at each call ("random"). What learnt deletion is compared with."""

    def __init__(self, rate: float, pattern: str, floor: float = FLOOR):
        super().__init__()
        if not 0 < rate < 1 or pattern not in ("random", "stride"):
            raise UsageError(
                f"FixedGate: rate={rate!r} must lie in (0, 1) and pattern={pattern!r} be 'random' or 'stride'"
            )
        self.rate, self.pattern, self.floor = rate, pattern, floor

    def forward(self, h: Tensor) -> Tensor:
        batch, length = h.shape[:2]
        kept = round((1 - self.rate) * length)
        if self.pattern == "stride":
            place = torch.arange(kept, device=h.device) * length // kept
            rows = place.expand(batch, kept)
        else:
            rows = torch.rand(batch, length, device=h.device).topk(kept, -1).indices
        return torch.full((batch, length), self.floor, device=h.device).scatter(1, rows, 0.0)


def delete(h: Tensor, gate: Tensor, floor: float = FLOOR) -> tuple[Tensor, Tensor]:
    """Take out the tokens with G < floor / 2; the others move to the left in their order.

    Shapes: h (B, L, width), gate (B, L) -> states (B, K, width) and their gates (B, K), where K is the most that any row keeps
    (at least 1); rows that keep fewer are filled with tokens of gate -inf, which nobody attends.
    """
    keep = gate >= floor / 2
    count = max(1, int(keep.sum(1).max()))
    order = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :count]
    inside = torch.arange(count, device=h.device) < keep.sum(1, keepdim=True)
    states = h.gather(1, order[..., None].expand(-1, -1, h.shape[-1]))
    return states, gate.gather(1, order).masked_fill(~inside, -math.inf)
