"""Integer grids: the vocabulary of number formats, and the pure functions that go onto a grid and back.

A grid is the set of codes low..high; a scale s and a zero point z place it on the real line:

    code q = clamp(round(x / s) + z, low, high)          value x^ = s (q - z)

z is 0 on a symmetric grid, so only s is stored there. Rounding is to the nearest, ties to even, so |x - x^| <= s / 2 for
every x inside the range. Ranges always contain 0, so that 0 (padding, ReLU, a masked weight) is exact.

Granularity says how many scales there are: one per tensor, one per channel (index of one axis), or one per group of
consecutive elements of the last axis (the last group may be shorter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.packing import pack_bits, unpack_bits

IDENTITY_BITS = 32  # "bits=32" means no quantization anywhere in this room
SCALE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class IntegerGrid:
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


@dataclass(frozen=True)
class PerTensor:
    """One scale for everything: shape ()."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per index of `axis`: shape (x.shape[axis],)."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup:
    """One scale per `size` consecutive elements of the last axis: shape (..., ceil(n / size))."""

    size: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 2:
            raise UsageError(
                f"group size {self.size!r}: a group has at least 2 elements (one scale each would be larger)"
            )


Granularity = PerTensor | PerChannel | PerGroup


def granularity_to_json(granularity: Granularity) -> Any:
    """ "tensor", {"channel": axis} or {"group": size}."""
    if isinstance(granularity, PerTensor):
        return "tensor"
    return {"channel": granularity.axis} if isinstance(granularity, PerChannel) else {"group": granularity.size}


def granularity_from_json(value: Any) -> Granularity:
    """The reverse of `granularity_to_json`. Raises ArtifactError for anything else."""
    if value == "tensor":
        return PerTensor()
    if isinstance(value, dict) and len(value) == 1:
        (name, number), *_ = value.items()
        if name in ("channel", "group") and isinstance(number, int):
            return PerChannel(number) if name == "channel" else PerGroup(number)
    raise ArtifactError(f'granularity {value!r}: allowed are "tensor", {{"channel": axis}} and {{"group": size}}')


def parameter_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """Shape of the scales of a tensor of the given shape."""
    if isinstance(granularity, PerTensor):
        return ()
    if isinstance(granularity, PerChannel):
        return (shape[granularity.axis],)
    return (*shape[:-1], math.ceil(shape[-1] / granularity.size))


def spread(parameter: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """Scales or zero points, as `parameter_shape` has them, broadcastable to a tensor of the given shape."""
    if isinstance(granularity, PerTensor):
        return parameter
    if isinstance(granularity, PerChannel):
        view = [1] * len(shape)
        view[granularity.axis] = shape[granularity.axis]
        return parameter.reshape(view)
    return parameter.repeat_interleave(granularity.size, dim=-1)[..., : shape[-1]]


def rows(x: Tensor, granularity: Granularity) -> Tensor:
    """The elements that share a scale, one row each: (number of scales, elements). A short last group repeats its last element."""
    if isinstance(granularity, PerTensor):
        return x.reshape(1, -1)
    if isinstance(granularity, PerChannel):
        return x.movedim(granularity.axis, 0).reshape(x.shape[granularity.axis], -1)
    missing = -x.shape[-1] % granularity.size
    if missing:
        x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], -1)
    return x.reshape(-1, granularity.size)


def min_max(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest value per scale, each of `parameter_shape`, in float32."""
    elements = rows(x.float(), granularity)
    shape = parameter_shape(x.shape, granularity)
    return elements.amin(1).reshape(shape), elements.amax(1).reshape(shape)


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
    kind = SCALE_TYPES[scale_type]
    if kind is not torch.float32:
        finfo = torch.finfo(kind)
        coarse = scale.clamp(finfo.tiny, finfo.max).to(kind)
        scale = torch.where(coarse.float() < scale, (coarse.float() * (1 + finfo.eps)).to(kind), coarse)
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
        zero_point = spread(zero_point.float(), codes.shape, granularity)
    return (codes.float() - zero_point) * spread(scale.float(), codes.shape, granularity)


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


@dataclass(frozen=True)
class Packed:
    """What is stored of a tensor: bit-packed codes, scales and, on an asymmetric grid, zero points.

    `nbytes` is the sum of the bytes of those tensors, nothing else.
    """

    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        tensors = (self.codes, self.scale, self.zero_point)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True)
class Quantizer:
    """tensor -> Packed -> tensor on an integer grid.

    method: "minmax" (nothing is clipped) or "mse" (`mse_range`). scale_type: how scales are stored: "float32", "bfloat16", "float16".
    A grid of 32 bits stores the tensor itself, so decode(encode(x)) is x exactly.
    Codes of 8 bits are stored as they are (int8 or uint8, shape of x); fewer bits are packed along the last axis, counted
    from the grid's smallest code. Raises DataError for a tensor that is empty or not finite.
    """

    grid: IntegerGrid = IntegerGrid()
    granularity: Granularity = PerTensor()
    method: str = "minmax"
    scale_type: str = "float32"

    def __post_init__(self) -> None:
        if self.method not in ("minmax", "mse"):
            raise UsageError(f"method={self.method!r}: allowed are 'minmax' and 'mse'")
        if self.scale_type not in SCALE_TYPES:
            raise UsageError(f"scale_type={self.scale_type!r}: allowed are {', '.join(map(repr, SCALE_TYPES))}")

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for x, each of `parameter_shape`."""
        choose = min_max if self.method == "minmax" else lambda x, granularity: mse_range(x, self.grid, granularity)
        low, high = choose(x, self.granularity)
        return affine(low, high, self.grid, self.scale_type)

    def encode(self, x: Tensor) -> Packed:
        """Store x on the grid."""
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise DataError(
                f"cannot quantize a tensor of shape {tuple(x.shape)} that is empty or holds NaN or infinity"
            )
        if self.grid.identity:
            return Packed(x.detach().clone(), None, None, tuple(x.shape))
        scale, zero = self.parameters(x.detach())
        return self.pack(quantize(x.detach(), scale, zero, self.grid, self.granularity), scale, zero)

    def pack(self, codes: Tensor, scale: Tensor, zero_point: Tensor) -> Packed:
        """Store codes that are on the grid already."""
        shape, small = tuple(codes.shape), torch.int8 if self.grid.signed else torch.uint8
        if self.grid.bits < 8:
            codes = pack_bits(codes.to(torch.int16).reshape(shape or (1,)) - self.grid.low, self.grid.bits)
        return Packed(codes, scale, None if self.grid.symmetric else zero_point.to(small), shape)

    def codes(self, packed: Packed) -> Tensor:
        """The unpacked codes, int8 or uint8, in the shape of the tensor."""
        if self.grid.bits == 8:
            return packed.codes
        count = packed.shape[-1] if packed.shape else 1
        codes = unpack_bits(packed.codes, self.grid.bits, count).to(torch.int16) + self.grid.low
        return codes.to(torch.int8 if self.grid.signed else torch.uint8).reshape(packed.shape)

    def decode(self, packed: Packed) -> Tensor:
        """The tensor that was stored, in float32 (at 32 bits: as it was)."""
        if self.grid.identity:
            return packed.codes.clone()
        zero = self.grid.center if packed.zero_point is None else packed.zero_point
        return dequantize(self.codes(packed), packed.scale, zero, self.granularity)
