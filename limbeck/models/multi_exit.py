"""An encoder with exits: after some of its layers a head of its own turns the states into an embedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.build import Factory, lineage, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import Block, check_length, check_sizes, initialize


class ExitEncoder(nn.Module):
    """Token and position embeddings, pre-norm blocks; after each layer in `layers` an exit: norm, mean over tokens, a linear projection.

    `forward(input_ids, attention_mask=None)`: (..., L) -> the last exit's embedding (..., D). Leading axes are kept, so a pair
    of texts is (B, 2, L). The m-th exit is the signal "exits.m". Positions whose mask is 0 change nothing.
    """

    def __init__(self, vocabulary, length, layers, width, heads, hidden, embedding, dropout):
        super().__init__()
        self.layers = tuple(layers)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(self.layers[-1]))
        self.exits = nn.ModuleList(Exit(width, embedding) for _ in self.layers)
        initialize(self, self.layers[-1])

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        check_length("exit_encoder", input_ids.shape[-1], self.positions.num_embeddings)
        shape, ids = input_ids.shape[:-1], input_ids.flatten(0, -2)
        counts = torch.ones_like(ids) if attention_mask is None else attention_mask.flatten(0, -2)
        mask = counts.bool()[:, None, None, :]
        x = self.dropout(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device)))
        for number, block in enumerate(self.blocks, 1):
            x = block(x, mask)
            if number in self.layers:
                embedding = self.exits[self.layers.index(number)](x, counts, shape)
        return embedding

    def truncated(self, exit: int) -> ExitEncoder:
        """The model up to its m-th exit, sharing the weights: what is deployed where the whole is too big."""
        if not 0 <= exit < len(self.layers):
            raise UsageError(f"exit={exit!r}: the encoder has the exits 0 to {len(self.layers) - 1}")
        made = exit_encoder(**{**lineage(self).factory.arguments, "layers": list(self.layers[: exit + 1])})
        own = self.state_dict()
        made.load_state_dict({name: own[name] for name in made.state_dict()})
        return made.train(self.training)


class Exit(nn.Module):
    """States (N, L, H), the tokens that count (N, L) and the leading shape (...) to an embedding (..., D)."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, embedding)

    def forward(self, x: Tensor, counts: Tensor, shape: torch.Size) -> Tensor:
        share = counts.to(x.dtype)[..., None]
        mean = (self.norm(x) * share).sum(1) / share.sum(1).clamp_min(1)
        return self.projection(mean).unflatten(0, tuple(shape))


def exit_encoder(
    vocabulary: int,
    length: int = 64,
    layers: Sequence[int] = (2, 4, 6),
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    embedding: int | None = None,
    dropout: float = 0.0,
) -> ExitEncoder:
    """An encoder of layers[-1] layers with exits after `layers` (rising). hidden: feed-forward width, by default 4 x width;
    embedding: width of what an exit gives, by default `width`.

    Source: Gurioli et al., "One Model to Train them All: Hierarchical Self-Distillation for Enhanced Early Layer Embeddings", 2025,
    whose encoder of 36 layers has exits after 4, 9, 18, 27 and 36. Raises UsageError for bad sizes.
    """
    layers = list(layers)
    if not layers or layers != sorted(set(layers)) or not all(isinstance(n, int) and n >= 1 for n in layers):
        raise UsageError(f"exit_encoder: layers={layers!r} must be rising numbers of layers, such as (2, 4, 6)")
    hidden, embedding = hidden or 4 * width, embedding or width
    check_sizes(
        "exit_encoder", width, heads, dropout, vocabulary=vocabulary, length=length, hidden=hidden, embedding=embedding
    )
    arguments = {"vocabulary": vocabulary, "length": length, "layers": layers, "width": width, "heads": heads}
    arguments |= {"hidden": hidden, "embedding": embedding, "dropout": dropout}
    return with_lineage(ExitEncoder(**arguments), Factory("limbeck.models.multi_exit:exit_encoder", arguments))
