"""The transformer block that the small ViT, GPT and encoder share.

    x = x + attention(norm1(x));  x = x + feed_forward(norm2(x))          (pre-norm)

Every projection is a plain `nn.Linear`, and no shape but the width of a head is remembered, so that heads, feed-forward neurons
and layers can be pruned, quantized or factorized by replacing those modules. `attention.weights` is a module, so a Tap
can capture the attention maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError

Cache = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rotate(x: Tensor, start: int = 0, base: float = 10000.0) -> Tensor:
    """Rotary position embedding: turn each pair (x_i, x_{i + d/2}) of the token at position p by p base^(-2i/d).

    Shapes: x (..., L, d) with d even, of the tokens at positions start ... start + L - 1; the same shape. The product of a
    query and a key then depends on their distance only. Source: Su et al., "RoFormer", 2021, eq. 34; the pairs are halves
    of the vector, not neighbours, as in GPT-NeoX: the same up to the order of the features.
    """
    half = x.shape[-1] // 2
    place = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)
    rate = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = place[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class SoftmaxOne(nn.Module):
    """exp(x_i) / (1 + sum_j exp(x_j)) over the last axis: a softmax that may attend to nothing.

    The usual softmax with one more score, fixed at 0, whose share is dropped. Source: Miller, "Attention Is Off By One", 2023.
    """

    def forward(self, scores: Tensor) -> Tensor:
        nothing = torch.zeros_like(scores[..., :1])
        return torch.cat([scores, nothing], -1).softmax(-1)[..., :-1]


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d) + mask) V over heads of width d, then a projection.  (B, L, width) -> (B, L, width)

    mask: broadcastable to (B, heads, L, keys): boolean, true where attention is allowed, or numbers that are added to the
    scores. A row that allows nothing attends evenly. Scores are computed in float32. memory: keys and values to read in place of
    the input's own, from `self.memory(source)`: cross-attention. rotary: turn queries and keys by their positions, see `rotate`.
    cache: (key, value) of these tokens -> those of all tokens so far, each (B, heads, tokens, d), keys not yet turned.
    """

    def __init__(self, width: int, heads: int, rotary: bool = False):
        super().__init__()
        self.head_width = width // heads
        self.rotary = rotary
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.weights = nn.Softmax(-1)
        self.output = nn.Linear(width, width)

    def memory(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a source (B, L, width): (B, heads, L, d) each."""
        return self._heads(self.key(source)), self._heads(self.value(source))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        query = self._heads(self.query(x))
        key, value = self.memory(x) if memory is None else memory
        if cache is not None:
            key, value = cache(key, value)
        if self.rotary:
            query, key = rotate(query, key.shape[-2] - query.shape[-2]), rotate(key)
        scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(self.head_width)
        if mask is not None:
            allowed = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min) if allowed else scores + mask
        mixed = self.weights(scores).to(value.dtype) @ value
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class FeedForward(nn.Module):
    """down(gelu(up(x))).  (..., width) -> (..., width)"""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.activation = nn.GELU()
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """One pre-norm transformer layer.  (B, L, width) -> (B, L, width)"""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, rotary: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, rotary)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


def initialize(model: nn.Module, depth: int) -> None:
    """Normal weights of deviation 0.02, zero biases; projections into the residual stream are divided by sqrt(2 depth).

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
    """
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv2d)):
            residual = path.endswith(("attention.output", "feed_forward.down"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def check_sizes(family: str, width: int, heads: int, dropout: float, **sizes: int) -> None:
    """Raise UsageError, naming the field, for sizes below one, heads that do not divide the width or a wild dropout."""
    for field, value in {"width": width, "heads": heads, **sizes}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{family}: {field} must be a whole number of at least 1, not {value!r}")
    if width % heads:
        raise UsageError(f"{family}: heads must divide width; {heads} does not divide {width}")
    if not 0 <= dropout < 1:
        raise UsageError(f"{family}: dropout must lie in [0, 1), not {dropout!r}")


def check_length(family: str, length: int, positions: int) -> None:
    """Raise UsageError for an input longer than the model has positions for."""
    if length > positions:
        raise UsageError(f"{family}: the input has {length} positions, the model only {positions}; build it longer")
