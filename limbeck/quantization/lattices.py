"""The lattice E8: eight values at a time on the densest packing of eight dimensions.

    E8 = { z in Z^8 : sum z even }  and  { z + 1/2 : z in Z^8, sum z even }

At equal density its mean squared error is 0.072 step^2 a value, the integer grid's 1/12 = 0.083. With b bits the coordinates z run
from -2^(b-1) to 2^(b-1) - 1. The parity of the sum says the lowest bit of the last coordinate, so that bit is free to say which of the
two halves a point is of: eight codes of b bits, and every one of the 2^(8b) codes is a point.

Source of the nearest point: Conway and Sloane, "Fast quantizing and decoding algorithms for lattice quantizers", 1982, here within
the box; of its use for weights: Tseng et al., "QuIP#", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ArtifactError
from limbeck.quantization.codebooks import check_channels, whole_vectors
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, parameter_shape, rows, spread
from limbeck.quantization.levels import ratios, search_scale
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits

ENTRIES = 8


@dataclass(frozen=True)
class LatticeGrid(Grid):
    """E8 points with coordinates of `width` bits, 2 to 8, along the last axis; a last vector that is short is filled up with zeros.

    Scales: "mse" (`levels.search_scale`), or "minmax": the largest magnitude lies at 2^(width-1) - 1.
    """

    methods: ClassVar[tuple[str, ...]] = ("mse", "minmax")
    width: int = 2

    def __post_init__(self) -> None:
        check_whole("width", self.width, 2, 8)

    @property
    def bits(self) -> float:
        return self.width

    @property
    def whole(self) -> tuple[float, int, int] | None:
        return (0.5, -(2**self.width), 2**self.width - 1) if self.width < 7 else None

    def whole_numbers(self, packed: Packed) -> Tensor:
        points = coordinates(self.codes(packed).unflatten(-1, (-1, ENTRIES)), self.width).flatten(-2)
        return (2 * points)[..., : (packed.shape or (1,))[-1]].to(torch.int8).reshape(packed.shape)

    def check_granularity(self, granularity: Granularity) -> None:
        whole_vectors(granularity, ENTRIES)

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        stored = (*outer, packed_length(math.ceil(count / ENTRIES) * ENTRIES, self.width))
        return {"codes": (stored, torch.uint8), "scale": (parameter_shape(shape, granularity), SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer) -> Packed:
        check_channels(x, quantizer.granularity, ENTRIES)
        wide = _filled(x)
        elements = rows(wide, quantizer.granularity, fill=0.0)
        size = elements.abs().amax(1, keepdim=True)
        elements = elements / torch.where(size == 0, 1.0, size)
        scale = torch.full_like(size, 1 / (2 ** (self.width - 1) - 1))
        if quantizer.method == "mse":
            scale = search_scale(elements, scale, lambda ratio: self._points(ratio)[0])
        scale = (scale * size).clamp(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
        scale = torch.where(size == 0, 0.0, as_stored(scale, quantizer.scale_type))
        scale = scale.reshape(parameter_shape(x.shape, quantizer.granularity)).to(SCALE_TYPES[quantizer.scale_type])
        return self._place(x, scale, quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self._place(x, packed.scale, quantizer.granularity)

    def codes(self, packed: Packed) -> Tensor:
        *outer, count = packed.shape or (1,)
        wide = math.ceil(count / ENTRIES) * ENTRIES
        return unpack_bits(packed.codes, self.width, wide).reshape(*outer, wide)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        codes = self.codes(packed)
        points = coordinates(codes.unflatten(-1, (-1, ENTRIES)), self.width).flatten(-2)
        values = points * spread(packed.scale.float(), points.shape, quantizer.granularity)
        return values[..., : (packed.shape or (1,))[-1]].reshape(packed.shape)

    def check(self, packed: Packed) -> None:
        """Every code is a point."""
        if (packed.scale < 0).any():
            raise ArtifactError(f"a stored scale of {self} is negative")

    def _points(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(t.flatten(-2) for t in nearest_point(ratio.unflatten(-1, (-1, ENTRIES)), self.width))

    def _place(self, x: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        codes = self._points(ratios(_filled(x), scale, granularity))[1]
        return Packed(pack_bits(codes, self.width), scale, None, tuple(x.shape))


def _filled(x: Tensor) -> Tensor:
    """x (..., n) with zeros up to a multiple of 8, float32."""
    x = x.float().reshape(x.shape or (1,))
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % ENTRIES))


def nearest_point(y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The nearest E8 point within the box, and its codes: y (..., 8) -> float32 (..., 8), uint8 (..., 8).

    In either half: round every coordinate into the box; if the sum is odd, move the one coordinate by 1 for which that costs least.
    """
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    best = point = codes = None
    for half in (0, 1):
        t = y - half / 2
        z = torch.round(t).clamp(low, high)
        other = torch.where(t >= z, z + 1, z - 1)
        other = torch.where((other < low) | (other > high), 2 * z - other, other)
        cost = (t - other).square() - (t - z).square()
        odd = z.sum(-1, keepdim=True) % 2 != 0
        moved = torch.zeros_like(z, dtype=torch.bool).scatter(-1, cost.argmin(-1, keepdim=True), True) & odd
        z = torch.where(moved, other, z)
        distance = (t - z).square().sum(-1, keepdim=True)
        found = (z - low).to(torch.uint8)
        found[..., -1] = found[..., -1] & 0xFE | half
        if best is None:
            best, point, codes = distance, z, found
        else:
            closer = distance < best
            point, codes = torch.where(closer, z + half / 2, point), torch.where(closer, found, codes)
    return point, codes


def coordinates(codes: Tensor, width: int) -> Tensor:
    """The point of codes (..., 8): float32 (..., 8). The last code's lowest bit says the half; the sum's parity says that bit of z."""
    half = (codes[..., -1:] & 1).float() / 2
    z = codes.float() - 2.0 ** (width - 1)
    z[..., -1] -= codes[..., -1] & 1
    z[..., -1] += z.sum(-1) % 2
    return z + half
