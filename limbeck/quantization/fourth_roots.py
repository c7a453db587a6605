"""Fourth roots of unity on the widely-linear form: real matrices as complex ones whose entries are 1, i, -1 or -i.

    x = x_1 + i x_2, y = y_1 + i y_2 (halves of input and output):   [A B; C D] x  =  U x + V conj(x)
    U = ((A + D) + i (C - B)) / 2,    V = ((A - D) + i (B + C)) / 2

exactly. Every entry of U and V goes to the root nearest in phase, with one scale for those on the real axis and one for those on the
imaginary axis; further stages do the same with what is left.

    Q_t = s_re Re(r) + i s_im Im(r),   s_re = mean |Re w| over entries sent to +-1,   s_im = mean |Im w| over those sent to +-i

Source: Wang et al., "Fairy2i: Training complex LLMs from real LLMs with all parameters in {+-1, +-i}", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, PerTensor
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits

ROOT_BITS = 2


def widely_linear(matrix: Tensor) -> Tensor:
    """U and V of a real matrix (2 m, 2 n): float32 (2, m, n, 2), the last axis the real and the imaginary part."""
    m, n = matrix.shape[0] // 2, matrix.shape[1] // 2
    matrix = matrix.float() / 2
    a, b, c, d = matrix[:m, :n], matrix[:m, n:], matrix[m:, :n], matrix[m:, n:]
    u = torch.stack([a + d, c - b], -1)
    v = torch.stack([a - d, b + c], -1)
    return torch.stack([u, v])


def real_matrix(parts: Tensor) -> Tensor:
    """The reverse of `widely_linear`: (2, m, n, 2) -> (2 m, 2 n)."""
    (p, q), (r, s) = parts[0].unbind(-1), parts[1].unbind(-1)
    return torch.cat([torch.cat([p + r, s - q], 1), torch.cat([q + s, p - r], 1)], 0)


def nearest_roots(parts: Tensor) -> Tensor:
    """The power k of the root i^k nearest in phase: parts (..., 2) -> uint8 (...). A tie goes to the real axis, 0 to 1."""
    real, imaginary = parts.unbind(-1)
    on_real = real.abs() >= imaginary.abs()
    return torch.where(on_real, (real < 0) * 2, 1 + (imaginary < 0) * 2).to(torch.uint8)


def roots(powers: Tensor) -> Tensor:
    """i^k as real and imaginary part: uint8 (...) -> float32 (..., 2)."""
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], device=powers.device)[powers.int()]


def axis_scales(parts: Tensor, powers: Tensor) -> Tensor:
    """s_re and s_im of every matrix: parts (k, m, n, 2), powers (k, m, n) -> (k, 2); 0 for an axis without entries."""
    chosen = roots(powers).abs()
    size = parts.abs().amax((1, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # so that no sum overflows
    return size * ((parts / size[:, None, None]).abs() * chosen).sum((1, 2)) / chosen.sum((1, 2)).clamp(min=1.0)


@dataclass(frozen=True)
class FourthRootGrid(Grid):
    """stages: 1 to 4, each 1 bit a real value. Of matrices with an even number of rows and columns, one set of scales per tensor.

    Stored: the powers, 2 bits each, (stages, 2, m, ceil(n / 4)); scales (stages, 2, 2): of U and V, real and imaginary axis.
    """

    methods: ClassVar[tuple[str, ...]] = ("mean",)
    stages: int = 1

    def __post_init__(self) -> None:
        check_whole("stages", self.stages, 1, 4)

    @property
    def bits(self) -> float:
        return self.stages

    def check_granularity(self, granularity: Granularity) -> None:
        if not isinstance(granularity, PerTensor):
            raise UsageError(f"{granularity}: complex matrices have one set of scales per tensor: take 'tensor'")

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        m, n = self._halves(shape)
        stored = (self.stages, 2, m, packed_length(n, ROOT_BITS))
        return {"codes": (stored, torch.uint8), "scale": ((self.stages, 2, 2), SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer) -> Packed:
        self._halves(x.shape)
        kind = SCALE_TYPES[quantizer.scale_type]
        limit = torch.finfo(kind).max
        return self._place(x, lambda rest, powers, _: axis_scales(rest, powers).clamp(max=limit).to(kind))

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        self._halves(x.shape)
        return self._place(x, lambda rest, powers, stage: packed.scale[stage])

    def codes(self, packed: Packed) -> Tensor:
        """Powers of i: uint8 (stages, 2, m, n)."""
        return unpack_bits(packed.codes, ROOT_BITS, packed.shape[1] // 2)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        values = roots(self.codes(packed)) * packed.scale.float()[:, :, None, None]
        return real_matrix(values.sum(0))

    def check(self, packed: Packed) -> None:
        """Every code is a root."""

    def _place(self, x: Tensor, scales) -> Packed:
        rest, codes, found = widely_linear(x), [], []
        for stage in range(self.stages):
            powers = nearest_roots(rest)
            scale = scales(rest, powers, stage)
            rest = rest - roots(powers) * scale.float()[:, None, None]
            codes.append(powers)
            found.append(scale)
        return Packed(pack_bits(torch.stack(codes), ROOT_BITS), torch.stack(found), None, tuple(x.shape))

    @staticmethod
    def _halves(shape: Sequence[int]) -> tuple[int, int]:
        if len(shape) != 2 or shape[0] % 2 or shape[1] % 2:
            raise DataError(
                f"shape {tuple(shape)}: complex roots need a matrix with an even number of rows and columns"
            )
        return shape[0] // 2, shape[1] // 2
