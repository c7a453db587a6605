"""A small bidirectional text encoder with a classification head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.models.layers import Block, check_length, check_sizes, initialize


class Encoder(nn.Module):
    """Token and position embeddings, pre-norm blocks, a last norm, the mean over the tokens that count, a linear head.

    `forward(input_ids, attention_mask=None)`: (B, L) -> logits (B, classes). Positions whose attention_mask is 0 change
    nothing, whatever token stands there.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        length: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialize(self, depth)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        check_length("encoder", length, self.positions.num_embeddings)
        counts = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = counts.bool()[:, None, None, :]
        x = self.dropout(self.tokens(input_ids) + self.positions(torch.arange(length, device=input_ids.device)))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        share = counts.float()[..., None]
        mean = (x.float() * share).sum(1) / share.sum(1).clamp_min(1)
        return self.head(mean.to(x.dtype))


def encoder(
    vocabulary: int,
    classes: int = 2,
    length: int = 64,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
) -> Encoder:
    """An encoder for up to `length` tokens; `hidden` is the feed-forward width, by default 4 x width.

    Raises UsageError for bad sizes.
    """
    hidden = 4 * width if hidden is None else hidden
    sizes = {"vocabulary": vocabulary, "classes": classes, "length": length, "depth": depth, "hidden": hidden}
    check_sizes("encoder", width, heads, dropout, **sizes)
    arguments = {**sizes, "width": width, "heads": heads, "dropout": dropout}
    return with_lineage(Encoder(**arguments), Factory("limbeck.models.encoder:encoder", arguments))
