"""Integers in the 2:4 pattern: of four neighbours two are stored, with their places.

    stored per four: two codes of b bits, two places of 2 bits      (b + 2) / 2 bits a value: 3 with 4-bit integers, 5 with 8-bit ones

It is the pattern that sparse tensor cores compute with (values and 2-bit indices side by side). The two of largest magnitude are kept, which
is the nearest point of the grid; a weight that was pruned in this pattern keeps its zeros.

Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, section 3 (pattern and compressed format).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, DataError
from limbeck.pruning.sparsity import two_of_four
from limbeck.quantization.codebooks import check_channels, whole_vectors
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, parameter_shape
from limbeck.quantization.grids import IntegerGrid, Quantizer, dequantize, quantize
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits


@dataclass(frozen=True)
class TwoOfFourGrid(Grid):
    """width: bits of the codes that are stored, 2 to 8; they are symmetric integers with the scales of those that are kept.

    The last axis must be a multiple of 4, else DataError. Groups hold whole fours.
    """

    methods: ClassVar[tuple[str, ...]] = ("minmax", "mse")
    width: int = 4

    def __post_init__(self) -> None:
        check_whole("width", self.width, 2, 8)

    @property
    def integers(self) -> IntegerGrid:
        """The grid of what is kept."""
        return IntegerGrid(self.width)

    @property
    def bits(self) -> float:
        return (self.width + 2) / 2

    @property
    def whole(self) -> tuple[float, int, int] | None:
        return self.integers.whole

    def whole_numbers(self, packed: Packed) -> Tensor:
        return self.codes(packed)

    def check_granularity(self, granularity: Granularity) -> None:
        whole_vectors(granularity, 4)

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        if count % 4:
            raise DataError(f"2:4 needs a last axis that is a multiple of 4, not {count}")
        stored = packed_length(count // 2, self.width) + packed_length(count // 2, 2)
        scales = parameter_shape(shape, granularity)
        return {"codes": ((*outer, stored), torch.uint8), "scale": (scales, SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer: Quantizer) -> Packed:
        kept, scale = self._parameters(x, quantizer)
        return self._place(kept, scale, quantizer.granularity)

    def rounded(self, x: Tensor, quantizer: Quantizer) -> Tensor:
        kept, scale = self._parameters(x, quantizer)
        codes = quantize(kept, scale, 0, self.integers, quantizer.granularity)
        return dequantize(codes, scale, 0, quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer: Quantizer) -> Packed:
        return self._place(_largest(x), packed.scale, quantizer.granularity)

    def codes(self, packed: Packed) -> Tensor:
        """int8 in the shape that was encoded, with the zeros."""
        values, places = self._unpacked(packed)
        fours = values.new_zeros(*values.shape[:-1], values.shape[-1] // 2, 4)
        fours = fours.scatter(-1, places.unflatten(-1, (-1, 2)), values.unflatten(-1, (-1, 2)))
        return fours.reshape(packed.shape)

    def decode(self, packed: Packed, quantizer: Quantizer) -> Tensor:
        return dequantize(self.codes(packed), packed.scale, 0, quantizer.granularity)

    def check(self, packed: Packed) -> None:
        values, places = self._unpacked(packed)
        low, high = self.integers.low, self.integers.high
        if int(values.min()) < low or int(values.max()) > high:
            raise ArtifactError(f"codes {int(values.min())} to {int(values.max())} are not on {self.integers}")
        first, second = places.unflatten(-1, (-1, 2)).unbind(-1)
        if (first >= second).any():
            raise ArtifactError(f"the places of two stored values of {self} do not rise")

    def _parameters(self, x: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """What is kept of x, and its scales."""
        self.layout(x.shape, quantizer.granularity, quantizer.scale_type)
        check_channels(x, quantizer.granularity, 4)
        kept = _largest(x)
        own = Quantizer(self.integers, quantizer.granularity, quantizer.method, quantizer.scale_type)
        return kept, own.parameters(kept)[0]

    def _place(self, kept: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        codes = quantize(kept, scale, 0, self.integers, granularity)
        # of the codes: which zeros are stored must not depend on what was rounded
        stays = ~two_of_four(codes.abs(), -1)
        places = stays.reshape(-1, 4).nonzero()[:, 1].reshape(*kept.shape[:-1], kept.shape[-1] // 2)
        values = codes[stays].reshape(places.shape).to(torch.int16) - self.integers.low
        stored = torch.cat([pack_bits(values, self.width), pack_bits(places.to(torch.uint8), 2)], -1)
        return Packed(stored, scale, None, tuple(kept.shape))

    def _unpacked(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """The stored codes, int8 (..., n / 2), and their places 0 to 3, int64 (..., n / 2)."""
        count = packed.shape[-1] // 2
        values, places = packed.codes.split([packed_length(count, self.width), packed_length(count, 2)], -1)
        values = unpack_bits(values.contiguous(), self.width, count).to(torch.int16) + self.integers.low
        return values.to(torch.int8), unpack_bits(places.contiguous(), 2, count).long()


def _largest(x: Tensor) -> Tensor:
    """x (..., n) in float32 with zeros in the place of the two smallest of every four."""
    return x.float().masked_fill(two_of_four(x.float().abs(), -1), 0)
