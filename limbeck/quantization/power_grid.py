"""Power grids whose exponent is searched: levels that are uniform under |x|^a, a chosen for whatever shares a scale.

    q = sign(x) |x / s|^a K  to the nearest level,    x^ = s sign(q) |q / K|^(1/a),    K = 2^(b-1) - 1

Power functions are the automorphisms of the multiplicative group of positive numbers, (x y)^a = x^a y^a: the product of two quantized numbers is
the product of their codes, under one power. a = 1 is the uniform grid; below 1 levels are dense around 0.

Source: Yvinec et al., "NUPES: Non-Uniform Post-Training Quantization via Power Exponent Search", 2023, from its abstract. Exponents are learned in
`limbeck.quantization.power_search`; `PowerGrid` has a given one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.affine_grid import two_parameter_layout
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.formats import PowerGrid, check_whole
from limbeck.quantization.granularity import Granularity, from_rows, parameter_shape, rows, spread
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.levels import search_scale
from limbeck.quantization.packing import pack_bits, unpack_bits

LOWEST, HIGHEST = 0.1, 2.0  # exponents that `PowerGrid` takes, too


def power(x: Tensor, exponent: float) -> Tensor:
    """sign(x) |x|^a.  (...)"""
    return x.sign() * x.abs() ** exponent


def power_levels(exponent: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Levels sign(k) |k / K|^(1/a), k = -K ... K, and their derivatives in a: exponent (...) -> two tensors (..., 2 K + 1)."""
    exponent = exponent.float().unsqueeze(-1)
    k = torch.arange(-largest, largest + 1, dtype=torch.float32, device=exponent.device) / largest
    levels = power(k, 1 / exponent)
    return levels, -levels * torch.where(k == 0, 1.0, k.abs()).log() / exponent**2


def nearest_levels(ratio: Tensor, levels: Tensor) -> Tensor:
    """The index of the nearest level, int64 (rows, n): ratio (rows, n), levels (rows, m) rising. A tie stays below."""
    return torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, ratio.contiguous())


@dataclass(frozen=True)
class SearchedPowerGrid(Grid):
    """A power grid whose exponent is searched for what shares a scale, and stored beside it (as `zero_point`, in the scales' type).

    bits: 2 to 8. lowest, highest, count: of the exponents that are tried, evenly spaced; the least squared error is taken. method: how the scale
    is found for each of them, "minmax" or "mse", as on level grids. The nearest level is meant on the real line.
    """

    bits: int = 4
    lowest: float = 0.3
    highest: float = 1.0
    count: int = 15

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)
        check_whole("count", self.count, 1, 1000)
        for name in ("lowest", "highest"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not LOWEST <= value <= HIGHEST:
                raise UsageError(f"{name}={value!r}: must lie from {LOWEST} to {HIGHEST:g}")
        if self.lowest > self.highest:
            raise UsageError(f"lowest={self.lowest!r}: must not be above highest={self.highest!r}")

    @property
    def largest(self) -> int:
        """K; codes are stored as 0 ... 2 K."""
        return 2 ** (self.bits - 1) - 1

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        return two_parameter_layout(self.bits, shape, granularity, scale_type)

    def parameters(self, x: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Scale and exponent for x, each of `parameter_shape`, as they are stored. Rows of zeros get scale 0 and the highest exponent."""
        elements = rows(x.float(), quantizer.granularity, fill=math.nan)
        size = elements.abs().nan_to_num(0.0).amax(1, keepdim=True)
        elements, kind = elements / torch.where(size == 0, 1.0, size), SCALE_TYPES[quantizer.scale_type]
        least = torch.full_like(size, torch.inf)
        scale, exponent = torch.ones_like(size), torch.full_like(size, self.highest)
        for value in torch.linspace(self.highest, self.lowest, self.count).to(kind).float():
            table = power_levels(value, self.largest)[0].to(x.device)

            def onto(ratio: Tensor, table: Tensor = table) -> Tensor:
                return table[torch.bucketize(ratio.contiguous(), (table[1:] + table[:-1]) / 2)]

            found = (
                torch.ones_like(size)
                if quantizer.method == "minmax"
                else search_scale(elements, torch.ones_like(size), onto)
            )
            error = (onto(elements / found) * found - elements).square().nansum(1, keepdim=True)
            scale, exponent = torch.where(error < least, found, scale), torch.where(error < least, value, exponent)
            least = torch.minimum(error, least)
        shape = parameter_shape(x.shape, quantizer.granularity)
        finfo = torch.finfo(torch.float32)
        scale = as_stored((scale * size).clamp(finfo.tiny, finfo.max), quantizer.scale_type)
        return torch.where(size == 0, torch.zeros_like(scale), scale).reshape(shape), exponent.to(kind).reshape(shape)

    def encode(self, x: Tensor, quantizer: Quantizer) -> Packed:
        return self.place(x, *self.parameters(x, quantizer), quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer: Quantizer) -> Packed:
        return self.place(x, packed.scale, packed.zero_point, quantizer.granularity)

    def place(self, x: Tensor, scale: Tensor, exponent: Tensor, granularity: Granularity) -> Packed:
        """x (...) with these scales and exponents."""
        elements = rows(x.float(), granularity)
        divisor = scale.float().reshape(-1, 1)
        ratio = torch.where(divisor == 0, 0.0, elements / torch.where(divisor == 0, 1.0, divisor))
        codes = nearest_levels(ratio, power_levels(exponent.flatten(), self.largest)[0])
        return self.pack(from_rows(codes, x.shape or (1,), granularity).reshape(x.shape), scale, exponent)

    def pack(self, codes: Tensor, scale: Tensor, exponent: Tensor) -> Packed:
        """Codes 0 ... 2 K (...) with scales and exponents in the type they are stored in."""
        stored = pack_bits(codes.reshape(codes.shape or (1,)).to(torch.uint8), self.bits)
        return Packed(stored, scale, exponent, tuple(codes.shape))

    def codes(self, packed: Packed) -> Tensor:
        return unpack_bits(packed.codes, self.bits, (packed.shape or (1,))[-1]).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer: Quantizer) -> Tensor:
        levels = power_levels(packed.zero_point.flatten(), self.largest)[0]
        index = rows(self.codes(packed).long(), quantizer.granularity).clamp(max=2 * self.largest)
        values = from_rows(levels.gather(1, index), packed.shape or (1,), quantizer.granularity).reshape(packed.shape)
        return values * spread(packed.scale.float(), packed.shape, quantizer.granularity)

    def check(self, packed: Packed) -> None:
        if int(self.codes(packed).max()) > 2 * self.largest:
            raise ArtifactError(f"some stored codes stand for no level of {self}")
        if (packed.scale < 0).any():
            raise ArtifactError(f"a stored scale of {self} is negative")
        if not ((packed.zero_point >= LOWEST - 1e-2) & (packed.zero_point <= HIGHEST)).all():
            raise ArtifactError(f"a stored exponent of {self} does not lie from {LOWEST} to {HIGHEST:g}")


def shared_exponent(
    weights: Iterable[Tensor], bits: int, granularity: Granularity, method: str = "minmax", steps: int = 12
) -> float:
    """The one exponent for all these tensors with the least sum of squared errors on `PowerGrid`, by golden section from 0.1 to 2.

    Source: Yvinec et al., "PowerQuant", ICLR 2023, whose search this sum is from; there by the method of Nelder and Mead.
    """
    held = [weight.detach() for weight in weights]

    def error(exponent: float) -> float:
        made = Quantizer(PowerGrid(bits, exponent), granularity, method)
        return sum(float((made.decode(made.encode(w)) - w).double().square().sum()) for w in held)

    low, high, part = LOWEST, HIGHEST, (math.sqrt(5) - 1) / 2
    inner, outer = high - part * (high - low), low + part * (high - low)
    at_inner, at_outer = error(inner), error(outer)
    for _ in range(steps):
        if at_inner < at_outer:
            high, outer, at_outer = outer, inner, at_inner
            inner = high - part * (high - low)
            at_inner = error(inner)
        else:
            low, inner, at_inner = inner, outer, at_outer
            outer = low + part * (high - low)
            at_outer = error(outer)
    return inner if at_inner < at_outer else outer
