"""Caches on a grid of few bits: the quantizers of weights, on keys and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.inference.kv_cache.base import KeyValueCache
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerGroup
from limbeck.quantization.grids import IntegerGrid, Quantizer
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.named_grids import named, open_width

ALONG = ("channel", "token")


@dataclass(frozen=True)
class QuantizedEntries:
    """Keys and values on a grid; the latest tokens stay dense.

    bits, grid        as in `Quantize`: by default "affine", x = s q + o with q in 0 ... 2^bits - 1
    keys, values      what shares scale and offset: "channel" (`group` tokens of one channel), "token" (`group` channels of one token)
    group             how many; with "channel" that many tokens are stored at a time, with "token" it is at most the width of a head
    recent            the latest tokens, at least so many, stay as they are
    scale_type        how scales and offsets are stored

    Channels of keys differ in size and keep their size over the tokens, channels of values do not: hence the defaults.
    Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024, section 3.2. Deviation: in a model with
    rotary positions our own caches hold keys before they are turned, as in Hooper et al., "KVQuant", NeurIPS 2024, section 3.2.
    """

    bits: int = 4
    keys: str = "channel"
    values: str = "token"
    group: int = 32
    recent: int = 32
    grid: str | dict[str, Any] = "affine"
    scale_type: str = "bfloat16"

    def __post_init__(self) -> None:
        for name in ("keys", "values"):
            if getattr(self, name) not in ALONG:
                raise UsageError(f"QuantizedEntries: {name}={getattr(self, name)!r}: allowed are 'channel' and 'token'")
        if isinstance(self.recent, bool) or not isinstance(self.recent, int) or self.recent < 0:
            raise UsageError(f"QuantizedEntries: recent={self.recent!r} must be a whole number of tokens, 0 or more")
        _ = self._quantizer(self.group)

    def _quantizer(self, size: int) -> Quantizer:
        grid = named(self.grid, self.bits if open_width(self.grid) else None)
        if not isinstance(grid, (AffineGrid, IntegerGrid, LevelGrid)):
            raise UsageError(
                f"QuantizedEntries: grid={self.grid!r} has no scales of its own for every group; take affine, integer or a grid of levels"
            )
        return Quantizer(grid, PerGroup(size), grid.methods[0], self.scale_type)

    def settled(self, length: int) -> int:
        """How many of `length` tokens are to be stored on the grid: all but the recent ones, whole groups only."""
        step = self.group if "channel" in (self.keys, self.values) else 1
        return max(0, length - self.recent) // step * step

    def pack(self, key: Tensor, value: Tensor) -> Entries:
        """Keys and values of the same tokens, (B, heads, L, d) each, as they are stored."""
        return Entries(*(self._side(x, along) for x, along in ((key, self.keys), (value, self.values))), key.dtype)

    def _side(self, x: Tensor, along: str) -> tuple[Packed, Quantizer, bool]:
        turned = along == "channel"
        x = (x.transpose(-1, -2) if turned else x).contiguous()
        quantizer = self._quantizer(self.group if turned else min(self.group, x.shape[-1]))
        return quantizer.encode(x), quantizer, turned

    @torch.no_grad()
    def compress(self, cache: KeyValueCache) -> KeyValueCache:
        """See `limbeck.inference.kv_cache.Compressor`; what is too recent to be stored on the grid follows dense."""
        count = self.settled(cache.length)
        if not count:
            raise UsageError(
                f"QuantizedEntries: of {cache.length} tokens none is to be stored with recent={self.recent} and groups of {self.group}"
            )
        layers = [cache.layer(index) for index in range(cache.depth)]
        prefix = QuantizedPrefix([self.pack(*(side[..., :count, :] for side in sides)) for sides in layers], count)
        made = KeyValueCache(cache.depth, prefix)
        for index, sides in enumerate(layers):
            if count < cache.length:
                made.extend(index, *(side[..., count:, :] for side in sides))
        return made


class Entries:
    """Packed keys and values of some tokens of one layer. Each side: its codes, its quantizer, and whether channels come first."""

    def __init__(self, key: tuple[Packed, Quantizer, bool], value: tuple[Packed, Quantizer, bool], kind: torch.dtype):
        self.sides, self.kind = (key, value), kind

    def unpack(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, heads, L, d) each, in the type they had."""
        dense = ((quantizer.decode(packed).to(self.kind), turned) for packed, quantizer, turned in self.sides)
        return tuple(x.transpose(-1, -2) if turned else x for x, turned in dense)

    def select(self, rows: Tensor) -> Entries:
        """The entries of these sequences of the batch, in this order."""
        return Entries(*((_select(packed, rows), *rest) for packed, *rest in self.sides), self.kind)

    def tensors(self) -> list[Tensor]:
        return [tensor for packed, _, _ in self.sides for tensor in packed.tensors.values()]


def _select(packed: Packed, rows: Tensor) -> Packed:
    chosen = {name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in packed.tensors.items()}
    shape = (len(rows), *packed.shape[1:])
    return Packed(chosen["codes"], chosen.get("scale"), chosen.get("zero_point"), shape)


class QuantizedPrefix:
    """The packed entries of every layer."""

    def __init__(self, layers: list[Entries], length: int):
        self.layers, self.length = layers, length

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        return self.layers[index].unpack()

    def tensors(self) -> Iterable[Tensor]:
        return [tensor for entries in self.layers for tensor in entries.tensors()]
