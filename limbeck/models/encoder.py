"""A small bidirectional text encoder with a classification head, and the same with a head that predicts masked tokens."""

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

    def states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The last hidden state of every token: (B, L) -> (B, L, width)."""
        length = input_ids.shape[1]
        check_length("encoder", length, self.positions.num_embeddings)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        x = self.dropout(self.tokens(input_ids) + self.positions(torch.arange(length, device=input_ids.device)))
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.states(input_ids, attention_mask)
        counts = torch.ones_like(input_ids) if attention_mask is None else attention_mask
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


class MaskedLanguageModel(nn.Module):
    """An encoder with a head that predicts tokens, its output matrix tied to the token embeddings.

    logits = norm(gelu(dense(h))) E^T + b,   h: the encoder's last hidden states, E: its token embeddings

    `forward(input_ids, attention_mask=None, masked=None)`: logits (B, L, vocabulary), or, with the positions `masked`
    (B, M) to be predicted, only those (B, M, vocabulary). `encoder` is what is kept after pre-training; its classification
    head takes no part.
    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019,
    section 3.1 and the head of the authors' code.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        vocabulary, width = encoder.tokens.weight.shape
        self.dense = nn.Linear(width, width)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        initialize(self.dense, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, masked: Tensor | None = None) -> Tensor:
        h = self.encoder.states(input_ids, attention_mask)
        if masked is not None:
            h = h.gather(1, masked[..., None].expand(-1, -1, h.shape[-1]))
        h = self.norm(self.activation(self.dense(h)))
        return nn.functional.linear(h, self.encoder.tokens.weight, self.bias)
