"""The affine grid: whole numbers times a scale, plus an offset of their own type.

    x^ = s q + o,    q = 0 .. 2^b - 1,    s > 0 and o real numbers, both stored as scales are

Unlike an integer zero point the offset need not be a multiple of the scale: 0 is not on the grid in general, and offset and scale
can be fitted independently (Guo et al., "decoupleQ", 2024; Badri and Shaji, "HQQ", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.granularity import Granularity, PerChannel, parameter_shape, rows, spread
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits


def two_parameter_layout(bits: int, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
    """Codes of `bits`, a scale and a second parameter of the same type (an offset, an exponent) as `zero_point`."""
    *outer, count = shape or (1,)
    scales = (parameter_shape(shape, granularity), SCALE_TYPES[scale_type])
    return {"codes": ((*outer, packed_length(count, bits)), torch.uint8), "scale": scales, "zero_point": scales}


@dataclass(frozen=True)
class AffineGrid(Grid):
    """bits: 1 to 8. Stored: codes, scales and, as `zero_point`, offsets, both in the quantizer's scale type.

    Ways of finding them: "minmax", the outermost levels on the smallest and the largest element, so |x - x^| <= s / 2 for float32
    scales; "mse", the range shrunk towards its middle by the factor in {1, ..., 0.4} with the least squared error.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 <= self.bits <= 8:
            raise UsageError(f"bits={self.bits!r}: an affine grid has 1 to 8 bits")

    @property
    def high(self) -> int:
        """The largest code; the smallest is 0."""
        return 2**self.bits - 1

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        return two_parameter_layout(self.bits, shape, granularity, scale_type)

    def parameters(self, x: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        """Scale and offset for x, each of `parameter_shape`, as they are stored."""
        elements, shape = rows(x.float(), quantizer.granularity), parameter_shape(x.shape, quantizer.granularity)
        low, high = elements.amin(1), elements.amax(1)
        found = self.of_range(low, high, quantizer.scale_type)
        if quantizer.method == "mse":
            least = torch.full_like(low, torch.inf)
            middle, best = (low + high) / 2, found
            for fraction in torch.linspace(1.0, 0.4, 60).tolist():
                trial = self.of_range(
                    middle + fraction * (low - middle), middle + fraction * (high - middle), quantizer.scale_type
                )
                values = affine_values(self.nearest(elements, *trial, PerChannel(0)), *trial, PerChannel(0))
                error = (values - elements).square().sum(1)
                best = tuple(torch.where(error < least, new, old) for new, old in zip(trial, best))
                least = torch.minimum(error, least)
            found = best
        return found[0].reshape(shape), found[1].reshape(shape)

    def of_range(self, low: Tensor, high: Tensor, scale_type: str) -> tuple[Tensor, Tensor]:
        """Scale and offset that put [low, high] (any shape) on the grid; a range of width 0 gets scale 1."""
        scale = high / self.high - low / self.high
        scale = as_stored(
            torch.where(scale > 0, scale.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(scale)), scale_type
        )
        kind = SCALE_TYPES[scale_type]
        return scale, low.clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)

    def nearest(self, x: Tensor, scale: Tensor, offset: Tensor, granularity: Granularity) -> Tensor:
        """Codes uint8 (...) of x (...)."""
        scale, offset = (spread(t.float(), x.shape, granularity) for t in (scale, offset))
        return torch.round((x.float() - offset) / scale).clamp(0, self.high).to(torch.uint8)

    def encode(self, x: Tensor, quantizer) -> Packed:
        return self.place(x, *self.parameters(x, quantizer), quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self.place(x, packed.scale, packed.zero_point, quantizer.granularity)

    def place(self, x: Tensor, scale: Tensor, offset: Tensor, granularity: Granularity) -> Packed:
        """x (...) with these scales and offsets."""
        return self.pack(self.nearest(x, scale, offset, granularity), scale, offset)

    def pack(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Packed:
        """Codes (...) that are on the grid already, with scales and offsets in the type they are stored in."""
        return Packed(pack_bits(codes.reshape(codes.shape or (1,)), self.bits), scale, offset, tuple(codes.shape))

    def codes(self, packed: Packed) -> Tensor:
        return unpack_bits(packed.codes, self.bits, (packed.shape or (1,))[-1]).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        return affine_values(self.codes(packed), packed.scale, packed.zero_point, quantizer.granularity)

    def check(self, packed: Packed) -> None:
        if not torch.isfinite(packed.zero_point).all() or not (packed.scale > 0).all():
            raise ArtifactError(f"a stored scale of {self} is not positive, or an offset not finite")


def affine_values(codes: Tensor, scale: Tensor, offset: Tensor, granularity: Granularity) -> Tensor:
    """s q + o in float32; codes (...), scale and offset of `parameter_shape(codes.shape, granularity)`."""
    scale, offset = (spread(t.float(), codes.shape, granularity) for t in (scale, offset))
    return codes.float() * scale + offset
