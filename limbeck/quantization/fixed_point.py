"""Fixed point: whole numbers of `word` bits, `fraction` of them behind the point; a scale that is a power of two.

    x^ = 2^-f q,   q = clamp(round(2^f x), -2^(w-1), 2^(w-1) - 1)            <word length w, fraction length f>

As a grid the scale 2^-f is stored per tensor, channel or group; f may be negative or larger than the word.

Stochastic rounding, floor(2^f x + u) with u uniform in [0, 1), is right on average: a step smaller than half of 2^-f is taken sometimes
instead of never, so that training on the grid does not stall (Gupta et al., "Deep Learning with Limited Numerical Precision", 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, parameter_shape, rows, spread
from limbeck.quantization.levels import ratios
from limbeck.quantization.packing import pack_wide, packed_length, unpack_wide


def fixed_point(x: Tensor, word: int, fraction: int, noise: Tensor | None = None) -> Tensor:
    """x (...) in fixed point, float32; rounded to the nearest, ties to even, or with uniform noise (...) in [0, 1) stochastically."""
    ratio = x.float() * 2.0**fraction
    codes = torch.round(ratio) if noise is None else torch.floor(ratio + noise)
    return codes.clamp(-(2.0 ** (word - 1)), 2.0 ** (word - 1) - 1) * 2.0**-fraction


def whole_bits(x: Tensor, fraction: int) -> int:
    """The shortest word, sign included and at least 2, in which no element of x (...) rounded to this fraction is clipped."""
    codes = torch.round(x.double() * 2.0**fraction)
    high, low = float(codes.max()), float(codes.min())
    return max(2, 1 + math.ceil(math.log2(max(high + 1, -low, 1.0))))


@dataclass(frozen=True)
class FixedPointGrid(Grid):
    """word: 2 to 16 bits. Scales are powers of two: "minmax" the least for which no element is clipped, "mse" of that one and its next
    four halves the one with the least squared error."""

    methods: ClassVar[tuple[str, ...]] = ("minmax", "mse")
    word: int = 8

    def __post_init__(self) -> None:
        check_whole("word", self.word, 2, 16)

    @property
    def bits(self) -> float:
        return self.word

    @property
    def low(self) -> int:
        return -(2 ** (self.word - 1))

    @property
    def high(self) -> int:
        return 2 ** (self.word - 1) - 1

    @property
    def whole(self) -> tuple[float, int, int] | None:
        return (1.0, self.low, self.high) if self.word < 8 else None

    def whole_numbers(self, packed: Packed) -> Tensor:
        return self.codes(packed).to(torch.int8)

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        return {
            "codes": ((*outer, packed_length(count, self.word)), torch.uint8),
            "scale": (parameter_shape(shape, granularity), SCALE_TYPES[scale_type]),
        }

    def encode(self, x: Tensor, quantizer) -> Packed:
        elements = rows(x.float(), quantizer.granularity, fill=0.0)
        scale = self._scales(elements, quantizer.method).reshape(parameter_shape(x.shape, quantizer.granularity))
        kind = SCALE_TYPES[quantizer.scale_type]
        largest = 2.0 ** math.floor(math.log2(torch.finfo(kind).max))
        scale = scale.clamp(torch.finfo(kind).tiny, largest).to(kind)
        return self.project(x, Packed(x, scale, None, tuple(x.shape)), quantizer)

    def _scales(self, elements: Tensor, method: str) -> Tensor:
        """(rows, n) -> (rows, 1), powers of two; 1 for rows of zeros."""
        reach = torch.maximum(elements.amax(1, keepdim=True) / self.high, elements.amin(1, keepdim=True) / self.low)
        reach = reach.double()
        widest = torch.where(reach > 0, torch.exp2(torch.ceil(torch.log2(reach.clamp(min=1e-300)))), 1.0)
        widest = widest.clamp(2.0**-126, 2.0**127).float()
        if method == "minmax":
            return widest
        best, least = widest, torch.full_like(widest, torch.inf)
        for halves in range(5):
            scale = (widest / 2**halves).clamp(min=2.0**-126)
            ratio = elements / scale
            error = ((ratio.round().clamp(self.low, self.high) - ratio) / 2**halves).square().sum(1, keepdim=True)
            best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
        return best

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        codes = torch.round(ratios(x, packed.scale, quantizer.granularity)).clamp(self.low, self.high).long() - self.low
        return Packed(pack_wide(codes.reshape(x.shape or (1,)), self.word), packed.scale, None, tuple(x.shape))

    def codes(self, packed: Packed) -> Tensor:
        """The whole numbers, int32 (...)."""
        count = (packed.shape or (1,))[-1]
        return (unpack_wide(packed.codes, self.word, count) + self.low).to(torch.int32).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        return self.codes(packed).float() * spread(packed.scale.float(), packed.shape, quantizer.granularity)

    def check(self, packed: Packed) -> None:
        """Every code is a number."""
