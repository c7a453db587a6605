"""A small decoder language model."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import Block, check_length, check_sizes, initialize

if TYPE_CHECKING:
    from limbeck.inference.kv_cache import KeyValueCache


class GPT(nn.Module):
    """Token and position embeddings, pre-norm causal blocks, a last norm and a head that shares the token embedding.

    `forward(input_ids, attention_mask=None, cache=None)`: (B, L) -> logits (B, L, vocabulary), where logits[:, t] predicts
    token t + 1 from the tokens up to t. Positions whose attention_mask is 0 are attended by no one.
    With a `limbeck.inference.kv_cache.KeyValueCache` the input continues the tokens that the cache holds, and
    attention_mask, if any, covers those too. With rotary positions there is no position embedding and no longest input.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        tied: bool,
        rotary: bool = False,
    ):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = None if rotary else nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout, rotary) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        initialize(self, depth)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        start = 0 if cache is None else cache.length
        total = start + input_ids.shape[1]
        place = torch.arange(total, device=input_ids.device)
        mask = place <= place[start:, None]
        if attention_mask is not None:
            mask = mask & attention_mask.bool()[:, None, None, :]
        x = self.tokens(input_ids)
        if self.positions is not None:
            check_length("gpt", total, self.positions.num_embeddings)
            x = x + self.positions(place[start:])
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, mask) if cache is None else block(x, mask, functools.partial(cache.extend, index))
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
    rotary: bool = False,
) -> GPT:
    """A GPT for up to `length` tokens; `hidden` is the feed-forward width, by default 4 x width.

    rotary: rotary position embeddings (heads of even width) in place of learned ones; `length` then bounds nothing.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Raises UsageError for bad sizes.
    """
    hidden = 4 * width if hidden is None else hidden
    check_sizes("gpt", width, heads, dropout, vocabulary=vocabulary, length=length, depth=depth, hidden=hidden)
    if rotary and width // heads % 2:
        raise UsageError(f"gpt: rotary positions need heads of even width; width={width} / heads={heads} is odd")
    arguments = {
        "vocabulary": vocabulary,
        "length": length,
        "depth": depth,
        "width": width,
        "heads": heads,
        "hidden": hidden,
        "dropout": dropout,
        "tied": tied,
        **({"rotary": True} if rotary else {}),
    }
    return with_lineage(GPT(**arguments), Factory("limbeck.models.gpt:gpt", arguments))
