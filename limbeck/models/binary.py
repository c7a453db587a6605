"""Layers that compute with signs, and a text encoder made of them: weights, activations and attention maps of one bit.

    weight       W^ = mean |w_i| sign(w_i - mean w_i), row by row           mean |w_i| and the sign pass no gradient, w_i - mean w_i does
    activation   sign(x), sign(0) = 1                                       gradient 1 where |x| < 1, else 0
    attention    1[sign(Q) sign(K)^T / sqrt(d) >= 0] sign(V)                no softmax: Bi-Attention

Every module keeps the float parameters of what it stands for under the same names, so a float model's weights load as they are. These modules
compute in float what XNOR and popcount would; they are no faster.
Source: Qin et al., "BiBERT: Accurate Fully Binarized BERT", ICLR 2022, section 3. The authors' public code was read; it agrees but for a map's
entry at a score of exactly 0, which is 0 there and by the formula, and here, 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.build import Factory, lineage, with_lineage
from limbeck.errors import UsageError
from limbeck.models.encoder import Encoder, encoder
from limbeck.models.layers import Attention, initialize


class _Binary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, low):
        ctx.save_for_backward(x.abs() < 1)
        return (x >= 0).to(x.dtype) * (1 - low) + low

    @staticmethod
    def backward(ctx, gradient):
        (inside,) = ctx.saved_tensors
        return gradient * inside, None


def binary(x: Tensor, low: float = -1.0) -> Tensor:
    """1 where x >= 0, elsewhere `low`; its gradient is that of the identity where |x| < 1, else 0.  (...) -> (...)"""
    return _Binary.apply(x, low)


def binary_rows(weight: Tensor) -> Tensor:
    """mean |w_i| sign(w_i - mean w_i) for every row w_i of (rows, n). The gradient is that of clamp(w_i - mean w_i, -1, 1)."""
    centred = weight - weight.mean(1, keepdim=True)
    scale = weight.abs().mean(1, keepdim=True)
    values = (torch.where(centred >= 0, scale, -scale)).detach()
    straight = centred.clamp(-1.0, 1.0)
    return values + (straight - straight.detach())


class Binary(nn.Module):
    """`binary` as a module: signs with low=-1, and with low=0 the maps of Bi-Attention."""

    def __init__(self, low: float = -1.0):
        super().__init__()
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        return binary(x, self.low)


class BinarySoftmax(nn.Softmax):
    """The sign of a softmax: 1 for all that may be attended to, as the softmax is positive. It carries no information: the baseline."""

    def forward(self, x: Tensor) -> Tensor:
        shares = super().forward(x)
        return shares + ((shares > 0).to(shares.dtype) - shares).detach()


class BinaryLinear(nn.Linear):
    """sign(x) W^^T + b.  (..., in) -> (..., out)"""

    @property
    def binary_weight(self) -> Tensor:
        """W^, (out, in)."""
        return binary_rows(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(binary(x), self.binary_weight, self.bias)


class BinaryEmbedding(nn.Embedding):
    """Rows of W^.  (...) of indices -> (..., width)"""

    @property
    def binary_weight(self) -> Tensor:
        """W^, (entries, width)."""
        return binary_rows(self.weight)

    def forward(self, index: Tensor) -> Tensor:
        return functional.embedding(index, self.binary_weight, self.padding_idx)


class BinaryAttention(Attention):
    """Attention of signs, with maps of 0 and 1: what is masked is 0.  (B, L, width) -> (B, L, width)

    maps: "bool", or "softmax" for the sign of a softmax. The outputs of `query`, `key` and `value` are what they are before the sign.
    """

    def __init__(self, width: int, heads: int, maps: str = "bool"):
        super().__init__(width, heads)
        if maps not in ("bool", "softmax"):
            raise UsageError(f"BinaryAttention: maps={maps!r}: allowed are 'bool' and 'softmax'")
        for name in ("query", "key", "value", "output"):
            setattr(self, name, BinaryLinear(width, width))
        self.weights = Binary(0.0) if maps == "bool" else BinarySoftmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        return super()._heads(binary(x))


def binary_encoder(
    vocabulary: int,
    classes: int = 2,
    length: int = 64,
    depth: int = 4,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    maps: str = "bool",
) -> Encoder:
    """`limbeck.models.encoder` with binary token embeddings and blocks; positions, norms and the head stay float. maps: see
    `BinaryAttention`. The names of its parameters are those of the float encoder."""
    model = encoder(vocabulary, classes, length, depth, width, heads, hidden, dropout)
    model.tokens = BinaryEmbedding(vocabulary, width)
    for block in model.blocks:
        block.attention = BinaryAttention(width, heads, maps)
        for name in ("up", "down"):
            old = getattr(block.feed_forward, name)
            setattr(block.feed_forward, name, BinaryLinear(old.in_features, old.out_features))
    initialize(model, depth)
    arguments = {**lineage(model).factory.arguments, "maps": maps}
    return with_lineage(model, Factory("limbeck.models.binary:binary_encoder", arguments))
