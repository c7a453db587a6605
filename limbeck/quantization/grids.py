"""The integer grid with its pure functions, and the Quantizer of every grid.

An integer grid is the set of codes low..high; a scale s and a zero point z place it on the real line:

    code q = clamp(round(x / s) + z, low, high)          value x^ = s (q - z)

z is 0 on a symmetric grid, so only s is stored there. Rounding is to the nearest, ties to even, so |x - x^| <= s / 2 for
every x inside the range. Ranges always contain 0, so that 0 (padding, ReLU, a masked weight) is exact.

Other grids: `levels` (sets of values: minifloats, ternary, ...), `binaries`, `codebooks`, `lattices`, `fourth_roots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.granularity import (
    Granularity,
    PerChannel,
    PerGroup,
    PerRows,
    PerTensor,
    granularity_from_json,
    granularity_to_json,
    min_max,
    parameter_shape,
    rows,
    spread,
)
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits

IDENTITY_BITS = 32  # "bits=32" means no quantization anywhere in this room


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """`bits` 2 to 8, or 32 for no quantization at all.

    signed symmetric    -(2^(b-1) - 1) .. 2^(b-1) - 1     weights: one code is given up so that x and -x are treated alike
    signed asymmetric   -2^(b-1) .. 2^(b-1) - 1
    unsigned            0 .. 2^b - 1                      activations; symmetric: the zero point is the middle, 2^(b-1)

    Raises UsageError for other widths.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (2, 3, 4, 5, 6, 7, 8, IDENTITY_BITS):
            raise UsageError(f"bits={self.bits!r}: a grid has 2 to 8 bits, or 32 for no quantization")

    @property
    def identity(self) -> bool:
        return self.bits == IDENTITY_BITS

    @property
    def low(self) -> int:
        """The smallest code."""
        if not self.signed:
            return 1 if self.symmetric else 0
        return -(2 ** (self.bits - 1)) + int(self.symmetric)

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - int(self.signed)) - 1

    @property
    def center(self) -> int:
        """The zero point of a symmetric grid."""
        return 0 if self.signed else 2 ** (self.bits - 1)

    @property
    def whole(self) -> tuple[float, int, int] | None:
        return (1.0, self.low, self.high) if self.signed and self.symmetric and not self.identity else None

    def whole_numbers(self, packed: Packed) -> Tensor:
        return self.codes(packed)

    @property
    def code_type(self) -> torch.dtype:
        return torch.int8 if self.signed else torch.uint8

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        if self.identity:
            return {"codes": (tuple(shape), torch.float32)}
        scales = parameter_shape(shape, granularity)
        stored = (tuple(shape), self.code_type)
        if self.bits < 8:
            stored = ((*(shape or (1,))[:-1], packed_length((shape or (1,))[-1], self.bits)), torch.uint8)
        made: Layout = {"codes": stored, "scale": (scales, SCALE_TYPES[scale_type])}
        return made if self.symmetric else made | {"zero_point": (scales, self.code_type)}

    def encode(self, x: Tensor, quantizer: Quantizer) -> Packed:
        if self.identity:
            return Packed(x.clone(), None, None, tuple(x.shape))
        return self._place(x, *quantizer.parameters(x), quantizer)

    def project(self, x: Tensor, packed: Packed, quantizer: Quantizer) -> Packed:
        if self.identity:
            return self.encode(x, quantizer)
        return self._place(x, packed.scale, self._zero(packed), quantizer)

    def _place(self, x: Tensor, scale: Tensor, zero_point: Tensor | int, quantizer: Quantizer) -> Packed:
        return quantizer.pack(quantize(x, scale, zero_point, self, quantizer.granularity), scale, zero_point)

    def _zero(self, packed: Packed) -> Tensor | int:
        return self.center if packed.zero_point is None else packed.zero_point

    def codes(self, packed: Packed) -> Tensor:
        if self.bits >= 8:
            return packed.codes
        count = packed.shape[-1] if packed.shape else 1
        codes = unpack_bits(packed.codes, self.bits, count).view(self.code_type)  # below 128, so int8 says the same
        return (codes + self.low if self.low else codes).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer: Quantizer) -> Tensor:
        if self.identity:
            return packed.codes.clone()
        return dequantize(self.codes(packed), packed.scale, self._zero(packed), quantizer.granularity)

    def check(self, packed: Packed) -> None:
        for found in () if self.identity else (self.codes(packed), packed.zero_point):
            if found is not None and (int(found.min()) < self.low or int(found.max()) > self.high):
                raise ArtifactError(f"codes {int(found.min())} to {int(found.max())} are not on {self}")


def affine(low: Tensor, high: Tensor, grid: IntegerGrid, scale_type: str = "float32") -> tuple[Tensor, Tensor]:
    """Scale and zero point that put the range [low, high], widened to contain 0, on the grid.

    symmetric:  s = max(-low, high) / (grid.high - center)          z = center
    asymmetric: s = (high - low) / (grid.high - grid.low)           z = round(grid.low - low / s)

    low, high: any shape. Returns scale (same shape, a value of `scale_type`, rounded up so that the range still fits) and
    zero point (same shape, int32). A range of width 0 gets scale 1.
    """
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    tiny = torch.finfo(torch.float32).tiny
    if grid.symmetric:
        scale = torch.maximum(-low, high) / (grid.high - grid.center)
    else:
        scale = high / (grid.high - grid.low) - low / (grid.high - grid.low)  # the difference itself may overflow
    scale = torch.where(torch.maximum(-low, high) > 0, scale.clamp(min=tiny), torch.ones_like(scale))
    scale = as_stored(scale, scale_type)
    if grid.symmetric:
        return scale, torch.full_like(scale, grid.center, dtype=torch.int32)
    zero = (grid.low - torch.round(low / scale.float())).clamp(grid.low, grid.high)
    return scale, zero.to(torch.int32)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, grid: IntegerGrid, granularity: Granularity) -> Tensor:
    """Codes of x: clamp(round(x / s) + z, low, high).

    x (...); scale and zero_point of `parameter_shape(x.shape, granularity)`. Returns codes (...) of int8 when signed, else uint8.
    """
    scale = spread(scale.float(), x.shape, granularity)
    if isinstance(zero_point, Tensor):
        zero_point = spread(zero_point, x.shape, granularity)
    codes = (torch.round(x.float() / scale) + zero_point).clamp(grid.low, grid.high)
    return codes.to(torch.int8 if grid.signed else torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int, granularity: Granularity) -> Tensor:
    """Values s (q - z) in float32; codes (...), scale and zero_point of `parameter_shape(codes.shape, granularity)`."""
    if isinstance(zero_point, Tensor):
        codes = codes.float() - spread(zero_point.float(), codes.shape, granularity)
    elif zero_point:
        codes = codes.float() - zero_point
    return codes * spread(scale.float(), codes.shape, granularity)


def mse_range(
    x: Tensor, grid: IntegerGrid, granularity: Granularity, candidates: int = 60, smallest: float = 0.4
) -> tuple[Tensor, Tensor]:
    """The range a [low, high], a in {1, ..., smallest}, per scale, with the least squared error of x on the grid.

    Returns low and high, each of `parameter_shape`. Clipping rare large values pays at few bits.
    """
    elements = rows(x.float(), granularity)
    low, high = elements.amin(1), elements.amax(1)
    best_low, best_high = low, high
    least = torch.full_like(low, torch.inf)
    for fraction in torch.linspace(1.0, smallest, candidates).tolist():
        scale, zero = affine(low * fraction, high * fraction, grid)
        decoded = dequantize(quantize(elements, scale, zero, grid, PerChannel(0)), scale, zero, PerChannel(0))
        error = (decoded - elements).square().sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best_low = torch.where(better, low * fraction, best_low)
        best_high = torch.where(better, high * fraction, best_high)
    shape = parameter_shape(x.shape, granularity)
    return best_low.reshape(shape), best_high.reshape(shape)


_INTEGER, _WHOLE = IntegerGrid(), PerTensor()


@dataclass(frozen=True)
class Quantizer:
    """tensor -> Packed -> tensor on any grid.

    granularity: what shares its parameters. method: how they are found: of integers "minmax" (nothing is clipped) or "mse" (`mse_range`);
    of other grids what they say. scale_type: how scales are stored: "float32", "bfloat16", "float16".
    A grid of 32 bits stores the tensor itself, so decode(encode(x)) is x exactly.
    Integer codes of 8 bits are stored as they are (int8 or uint8, shape of x); fewer bits are packed along the last axis, counted
    from the grid's smallest code. Raises UsageError for settings that do not go together, DataError for a tensor that is empty,
    not finite, or of a shape that the grid does not take.
    """

    grid: Grid = _INTEGER
    granularity: Granularity = _WHOLE
    method: str = "minmax"
    scale_type: str = "float32"

    def __post_init__(self) -> None:
        if self.method not in self.grid.methods:
            raise UsageError(f"method={self.method!r}: allowed are {' and '.join(map(repr, self.grid.methods))}")
        if self.scale_type not in SCALE_TYPES:
            raise UsageError(f"scale_type={self.scale_type!r}: allowed are {', '.join(map(repr, SCALE_TYPES))}")
        self.grid.check_granularity(self.granularity)

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for x on an integer grid, each of `parameter_shape`."""
        choose = min_max if self.method == "minmax" else lambda x, granularity: mse_range(x, self.grid, granularity)
        low, high = choose(x, self.granularity)
        return affine(low, high, self.grid, self.scale_type)

    def encode(self, x: Tensor) -> Packed:
        """Store x on the grid."""
        return self.grid.encode(_checked(x), self)

    def project(self, x: Tensor, packed: Packed) -> Packed:
        """Store x (...) with the scales, zero points and codebooks of `packed`, which is of the same shape: only codes are new."""
        return self.grid.project(_checked(x), packed, self)

    def pack(self, codes: Tensor, scale: Tensor, zero_point: Tensor | int) -> Packed:
        """Store codes that are on the integer grid already; the zero point of a symmetric grid is its center, and not stored."""
        shape = tuple(codes.shape)
        if self.grid.bits < 8:
            codes = pack_bits(codes.to(torch.int16).reshape(shape or (1,)) - self.grid.low, self.grid.bits)
        return Packed(codes, scale, None if self.grid.symmetric else zero_point.to(self.grid.code_type), shape)

    def codes(self, packed: Packed) -> Tensor:
        """The unpacked codes: of integers int8 or uint8 in the shape of the tensor."""
        return self.grid.codes(packed)

    def decode(self, packed: Packed) -> Tensor:
        """The tensor that was stored, in float32 (at 32 bits: as it was)."""
        return self.grid.decode(packed, self)

    def layout(self, shape: Sequence[int]) -> Layout:
        """Shapes and types of what is stored of a tensor of the given shape."""
        return self.grid.layout(tuple(shape), self.granularity, self.scale_type)

    def check(self, packed: Packed) -> None:
        """Raise ArtifactError for stored tensors that this quantizer cannot have written: wrong shapes or types, codes that are
        not on the grid, parameters that are not finite."""
        expected, tensors = self.layout(packed.shape), packed.tensors
        found: dict[str, Any] = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
        for name, (_, kind) in found.items():
            if name in expected and kind.is_floating_point and expected[name][1].is_floating_point:
                expected[name] = (expected[name][0], kind)  # a model may be cast as a whole
        if found != expected:
            raise ArtifactError(f"the stored tensors are {found}, {self.grid} of shape {packed.shape} has {expected}")
        for name, value in tensors.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise ArtifactError(f"a stored {name} of {self.grid} is not finite")
        self.grid.check(packed)


def _checked(x: Tensor) -> Tensor:
    if x.numel() == 0 or not torch.isfinite(x).all():
        raise DataError(f"cannot quantize a tensor of shape {tuple(x.shape)} that is empty or holds NaN or infinity")
    return x.detach()


__all__ = [
    "IDENTITY_BITS",
    "SCALE_TYPES",
    "Granularity",
    "Grid",
    "IntegerGrid",
    "Packed",
    "PerChannel",
    "PerGroup",
    "PerRows",
    "PerTensor",
    "Quantizer",
    "affine",
    "as_stored",
    "dequantize",
    "granularity_from_json",
    "granularity_to_json",
    "min_max",
    "mse_range",
    "parameter_shape",
    "quantize",
    "rows",
    "spread",
]
