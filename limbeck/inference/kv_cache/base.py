"""The cache that a decoder reads and extends, and the contract of what compresses it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from limbeck.errors import UsageError


class Prefix(Protocol):
    """The compressed keys and values of the first `length` tokens, of every layer."""

    length: int

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, reconstructed: (B, heads, length, d) each."""
        ...

    def tensors(self) -> Iterable[Tensor]:
        """Everything that is stored."""
        ...


class Compressor(Protocol):
    """A frozen dataclass of settings that turns the dense keys and values of a prefix into fewer numbers."""

    def compress(self, cache: KeyValueCache) -> KeyValueCache:
        """A cache whose prefix is compressed and whose later tokens stay dense; the given one is left as it is."""
        ...


class KeyValueCache:
    """Keys and values of `depth` layers: a compressed prefix (or none) and dense tokens after it.

        cache = KeyValueCache(len(model.blocks))
        logits = model(prompt, cache=cache)             # fills it
        cache = SharedLowRank(key_rank=..., ...).compress(cache)
        logits = model(following, cache=cache)          # continues after it

    Keys are those before the position embedding: the model turns them after it has read them, so that what is
    compressed has no positions in it. `length`: tokens held. `numbers`, `nbytes`: what is really stored.
    """

    def __init__(self, depth: int, prefix: Prefix | None = None):
        if depth < 1:
            raise UsageError(f"a key/value cache of depth={depth}: at least one layer is needed")
        self.depth, self.prefix = depth, prefix
        self._tail: list[tuple[Tensor, Tensor] | None] = [None] * depth

    @property
    def length(self) -> int:
        """Tokens that every layer holds."""
        last = self._tail[-1]
        return (self.prefix.length if self.prefix else 0) + (last[0].shape[-2] if last else 0)

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append a layer's new keys and values (B, heads, L, d); all so far, (B, heads, length, d) each."""
        held = self._tail[layer]
        self._tail[layer] = (key, value) if held is None else tuple(map(_append, held, (key, value)))
        return self.layer(layer)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer. Raises UsageError for a layer without any."""
        parts = [] if self.prefix is None else [self.prefix.layer(index)]
        if self._tail[index] is not None:
            parts.append(self._tail[index])
        if not parts:
            raise UsageError(f"layer {index} of the cache is empty: run the model with cache=... first")
        return parts[0] if len(parts) == 1 else tuple(map(_append, *parts))

    def tensors(self) -> list[Tensor]:
        """Everything that is stored."""
        tail = [tensor for held in self._tail if held for tensor in held]
        return [*(self.prefix.tensors() if self.prefix else ()), *tail]

    @property
    def numbers(self) -> int:
        """How many numbers are stored."""
        return sum(tensor.numel() for tensor in self.tensors())

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def stacked(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values of layers first ... last - 1 side by side: (B, length, sum of their widths) each."""
        found = [self.layer(index) for index in range(first, last)]
        return tuple(torch.cat([flatten_heads(layer[which]) for layer in found], -1) for which in (0, 1))


def flatten_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads d)"""
    return x.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads d) -> (B, heads, L, d)"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def groups(depth: int, size: int) -> list[tuple[int, int]]:
    """Neighbouring layers in groups of `size`, the last one smaller where it does not divide: [(first, after last), ...]"""
    return [(first, min(first + size, depth)) for first in range(0, depth, size)]


def _append(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b.to(a.dtype)], -2)
