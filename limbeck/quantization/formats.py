"""Formats: the level grids, each a rule for its table of values.

| grid                | levels                                                                | bits            |
|---------------------|-----------------------------------------------------------------------|-----------------|
| `LogGrid`           | 0 and +- b^-k, k = 0 .. 2^(bits-1) - 2; b = 2: powers of two           | 2 to 8          |
| `PowerGrid`         | sign(k) abs(k / K)^(1/a), K = 2^(bits-1) - 1: uniform under abs(x)^a   | 2 to 8          |
| `MinifloatGrid`     | sign, exponent, mantissa: fp8, fp6, fp4                               | 3 to 8          |
| `NormalFloatGrid`   | quantiles of the normal distribution, with 0: nf4, nf3                | 2 to 8          |
| `TernaryGrid`       | -1, 0, 1                                                              | 1.6, 5 per byte |
| `BinaryGrid`        | 1, -1                                                                 | 1               |
| `LevelSet`          | any rising numbers                                                    | 1 to 8          |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.contract import Packed
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.packing import TRITS, pack_trits, unpack_trits


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise UsageError unless the value is a whole number from low to high."""
    if type(value) is not int or not low <= value <= high:
        raise UsageError(f"{name}={value!r}: must be a whole number from {low} to {high}")


@dataclass(frozen=True)
class LogGrid(LevelGrid):
    """0 and signed powers +- base^-k: with base 2 a product is a shift (Miyashita et al., 2016; INQ, Zhou et al., 2017).

    signed    k = 0 .. 2^(bits-1) - 2, both signs and 0:  2^bits - 1 levels
    unsigned  k = 0 .. 2^bits - 2, and 0: activations behind a ReLU or softmax
    Nearest is meant on the real line, not between logarithms.
    """

    bits: int = 4
    base: float = 2.0
    signed: bool = True

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)
        if not isinstance(self.base, (int, float)) or not 1.0 < self.base <= 16.0:
            raise UsageError(f"base={self.base!r}: must lie above 1 and at most at 16")
        if self.base ** -(2 ** (self.bits - int(self.signed)) - 2) < 2.0**-120:
            raise UsageError(f"base={self.base!r} with {self.bits} bits has levels below 2^-120: take a smaller base")

    def values(self) -> Sequence[float]:
        powers = [self.base**-k for k in range(2 ** (self.bits - int(self.signed)) - 1)]
        return sorted([0.0, *powers, *([-p for p in powers] if self.signed else [])])


@dataclass(frozen=True)
class PowerGrid(LevelGrid):
    """Uniform under the automorphism x -> sign(x) |x|^a of the multiplicative group (Yvinec et al., "NUPES", 2023): levels
    sign(k) |k / K|^(1/a), k = -K .. K, K = 2^(bits-1) - 1. exponent a: 1 is the uniform grid; below 1 levels are dense around 0.
    Nearest is meant on the real line."""

    bits: int = 4
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)
        if not isinstance(self.exponent, (int, float)) or not 0.1 <= self.exponent <= 2.0:
            raise UsageError(f"exponent={self.exponent!r}: must lie from 0.1 to 2")

    def values(self) -> Sequence[float]:
        largest = 2 ** (self.bits - 1) - 1
        return [math.copysign(abs(k / largest) ** (1 / self.exponent), k) for k in range(-largest, largest + 1)]


@dataclass(frozen=True)
class MinifloatGrid(LevelGrid):
    """Sign, exponent and mantissa bits, with subnormals: +- 2^(e - bias) (1 + m / 2^mantissa). A code is the format's bit pattern.

    special   what patterns are no numbers: "none" (fp4, fp6: OCP Microscaling), "nan" (all ones: fp8 e4m3fn), "ieee" (the largest exponent:
              fp8 e5m2). The bias is 2^(exponent-1) - 1. The pattern of -0 is not used; what lies beyond the largest number saturates.
    """

    exponent: int = 4
    mantissa: int = 3
    special: str = "none"

    def __post_init__(self) -> None:
        check_whole("exponent", self.exponent, 1, 6)
        check_whole("mantissa", self.mantissa, 0, 6)
        check_whole("1 + exponent + mantissa", 1 + self.exponent + self.mantissa, 3, 8)
        if self.special not in ("none", "nan", "ieee"):
            raise UsageError(f"special={self.special!r}: allowed are 'none', 'nan' and 'ieee'")

    def values(self) -> Sequence[float]:
        fractions, exponents = 2**self.mantissa, 2**self.exponent
        bias = 2 ** (self.exponent - 1) - 1
        found = []
        for pattern in range(exponents * fractions):
            power, fraction = divmod(pattern, fractions)
            missing = (self.special == "nan" and pattern == exponents * fractions - 1) or (
                self.special == "ieee" and power == exponents - 1
            )
            number = 2.0 ** (max(power, 1) - bias) * ((power > 0) + fraction / fractions)
            found.append(math.nan if missing else number)
        return [*found, math.nan, *(-number for number in found[1:])]


@dataclass(frozen=True)
class NormalFloatGrid(LevelGrid):
    """Quantiles of the standard normal distribution, scaled to [-1, 1], with an exact 0 (Dettmers et al., "QLoRA", 2023, eq. 4): 2^(bits-1)
    positive and 2^(bits-1) - 1 negative ones, each evenly spaced in probability from 1/2 to offset = 1 - (1/(2 n) + 1/(2 n - 2)) / 2 with
    n = 2^bits. At 4 bits these are the published nf4 numbers."""

    bits: int = 4

    def __post_init__(self) -> None:
        check_whole("bits", self.bits, 2, 8)

    def values(self) -> Sequence[float]:
        n, half = 2**self.bits, 2 ** (self.bits - 1)
        offset = 1 - (1 / (2 * n) + 1 / (2 * n - 2)) / 2

        def quantiles(count: int) -> list[float]:
            at = torch.linspace(0.5, offset, count + 1, dtype=torch.float64)[1:]
            return torch.special.ndtri(at).tolist()

        up, down = quantiles(half), quantiles(half - 1)
        return [-v / down[-1] for v in reversed(down)] + [0.0] + [v / up[-1] for v in up]


@dataclass(frozen=True)
class TernaryGrid(LevelGrid):
    """-1, 0, 1 as codes 0, 1, 2, five to a byte. Scales: "absmean" and "absmedian" (BitNet b1.58), "twn" (Li et al., "Ternary weight
    networks", 2016), "mse"."""

    methods: ClassVar[tuple[str, ...]] = ("absmean", "absmedian", "twn", "mse", "minmax")

    def values(self) -> Sequence[float]:
        return (-1.0, 0.0, 1.0)

    @property
    def bits(self) -> float:
        return 8 / TRITS

    def store(self, codes: Tensor) -> Tensor:
        return pack_trits(codes)

    def unstore(self, stored: Tensor, count: int) -> Tensor:
        return unpack_trits(stored, count)

    def stored_length(self, count: int) -> int:
        return -(-count // TRITS)

    def check(self, packed: Packed) -> None:
        super().check(packed)
        if int(packed.codes.max()) >= 3**TRITS:
            raise ArtifactError(f"byte {int(packed.codes.max())} holds no five trits: the largest is {3**TRITS - 1}")


@dataclass(frozen=True)
class BinaryGrid(LevelGrid):
    """1 and -1 as codes 0 and 1 (the sign bit); 0 counts as positive. With "absmean" the scale is the best one (Rastegari et al., "XNOR-Net",
    ECCV 2016, eq. 6)."""

    methods: ClassVar[tuple[str, ...]] = ("absmean", "absmedian", "mse", "minmax")

    def values(self) -> Sequence[float]:
        return (1.0, -1.0)


@dataclass(frozen=True)
class LevelSet(LevelGrid):
    """Any rising numbers, 2 to 256 of them."""

    levels: tuple[float, ...] = (-1.0, 0.0, 1.0, 2.0)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        except (TypeError, ValueError) as error:
            raise UsageError(f"levels={self.levels!r}: must be numbers") from error
        stored = torch.tensor(self.levels, dtype=torch.float32)
        ok = 2 <= len(stored) <= 256 and bool(torch.isfinite(stored).all()) and bool((stored.diff() > 0).all())
        if not ok:
            raise UsageError(f"levels={self.levels!r}: must be 2 to 256 finite numbers that rise")

    def values(self) -> Sequence[float]:
        return self.levels
