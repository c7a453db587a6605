"""A small decoder language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.models.layers import Block, check_length, check_sizes, initialize


class GPT(nn.Module):
    """Token and position embeddings, pre-norm causal blocks, a last norm and a head that shares the token embedding.

    `forward(input_ids, attention_mask=None)`: (B, L) -> logits (B, L, vocabulary), where logits[:, t] predicts token t + 1
    from the tokens up to t. Positions whose attention_mask is 0 are attended by no one.
    """

    def __init__(
        self, vocabulary: int, length: int, depth: int, width: int, heads: int, hidden: int, dropout: float, tied: bool
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        initialize(self, depth)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        check_length("gpt", length, self.positions.num_embeddings)
        place = torch.arange(length, device=input_ids.device)
        mask = place <= place[:, None]
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None, None, :]
        x = self.dropout(self.tokens(input_ids) + self.positions(place))
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def gpt(
    vocabulary: int,
    length: int = 128,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    tied: bool = True,
) -> GPT:
    """A GPT for up to `length` tokens; `hidden` is the feed-forward width, by default 4 x width.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Raises UsageError for bad sizes.
    """
    hidden = 4 * width if hidden is None else hidden
    check_sizes("gpt", width, heads, dropout, vocabulary=vocabulary, length=length, depth=depth, hidden=hidden)
    arguments = {
        "vocabulary": vocabulary,
        "length": length,
        "depth": depth,
        "width": width,
        "heads": heads,
        "hidden": hidden,
        "dropout": dropout,
        "tied": tied,
    }
    return with_lineage(GPT(**arguments), Factory("limbeck.models.gpt:gpt", arguments))
