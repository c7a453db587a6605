"""Sums of binaries: every value is a sum of a few scales, each taken or not, or each with a sign.

    x^ = a_1 b_1 + ... + a_k b_k       b_j in {-1, 1}: residual binarization;   b_j in {0, 1}: dual binarization for k = 2

All elements that share parameters share a_1 .. a_k, so they lie on the same 2^k values; a code holds the k bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed
from limbeck.quantization.formats import LevelSet, check_whole
from limbeck.quantization.granularity import Granularity, from_rows, parameter_shape, rows
from limbeck.quantization.levels import scales
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits


@dataclass(frozen=True)
class BinarySum(Grid):
    """terms: k, 1 to 4, so k bits a value. low: the other value of a bit, -1 or 0.

    Scales are stored as (*parameter_shape, k). Methods:

        least_squares   from the start below, in turn the nearest of the 2^k values for every element and the best scales for these
                        codes, as long as the error falls (Guo et al., "Network sketching", 2017; Xu et al., "Alternating
                        multi-bit quantization", ICLR 2018)
        greedy          the start alone. low = -1: a_j = mean |r|, b_j = sign(r), r the rest of x. low = 0: the uniform grid of k
                        bits with the least squared error, a = s (2^(k-1), -1, -2, ..), s of either sign: for k = 2 the levels
                        -s, 0, s, 2 s (Chen et al., "DB-LLM", 2024, eq. 4)
    """

    methods: ClassVar[tuple[str, ...]] = ("least_squares", "greedy")
    terms: int = 2
    low: int = -1

    def __post_init__(self) -> None:
        check_whole("terms", self.terms, 1, 4)
        if type(self.low) is not int or self.low not in (-1, 0):
            raise UsageError(f"low={self.low!r}: a bit is 1 or, otherwise, -1 or 0")

    @property
    def bits(self) -> float:
        return self.terms

    @property
    def signs(self) -> Tensor:
        """b of every code, float32 (2^k, k): bit j of the code says whether b_j is 1."""
        bits = torch.arange(2**self.terms).unsqueeze(1) >> torch.arange(self.terms) & 1
        return torch.where(bits == 1, 1.0, float(self.low))

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        scales = (*parameter_shape(shape, granularity), self.terms)
        return {
            "codes": ((*outer, packed_length(count, self.terms)), torch.uint8),
            "scale": (scales, SCALE_TYPES[scale_type]),
        }

    def encode(self, x: Tensor, quantizer) -> Packed:
        elements = rows(x.float(), quantizer.granularity, fill=math.nan)
        size = elements.abs().nan_to_num(0.0).amax(1, keepdim=True)
        elements = elements / torch.where(size == 0, 1.0, size)
        scale = self._start(elements)
        if quantizer.method == "least_squares":
            scale = alternate(elements, scale, self.signs.to(x.device))
        kind = SCALE_TYPES[quantizer.scale_type]
        stored = (scale * size).clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)
        shape = (*parameter_shape(x.shape, quantizer.granularity), self.terms)
        return self._place(x, stored.reshape(shape), quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self._place(x, packed.scale, quantizer.granularity)

    def codes(self, packed: Packed) -> Tensor:
        return unpack_bits(packed.codes, self.terms, (packed.shape or (1,))[-1]).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        return self.values(self.codes(packed), packed.scale, quantizer.granularity)

    def check(self, packed: Packed) -> None:
        """Every code is on the grid."""

    def values(self, codes: Tensor, scale: Tensor, granularity: Granularity) -> Tensor:
        """Values of codes (...), differentiable in the scales (*parameter_shape, k): d x^ / d a_j = b_j."""
        table = scale.float().reshape(-1, self.terms) @ self.signs.to(scale.device).T
        return from_rows(table.gather(1, rows(codes.long(), granularity)), codes.shape, granularity)

    def nearest(self, x: Tensor, scale: Tensor, granularity: Granularity) -> Tensor:
        """Codes of the nearest values, uint8 in the shape of x; the smallest code of equals."""
        table = scale.float().reshape(-1, self.terms) @ self.signs.to(x.device).T
        return from_rows(_nearest(rows(x.float(), granularity), table), x.shape, granularity).to(torch.uint8)

    def _place(self, x: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        codes = self.nearest(x, scale, granularity).reshape(x.shape or (1,))
        return Packed(pack_bits(codes, self.terms), scale, None, tuple(x.shape))

    def _start(self, elements: Tensor) -> Tensor:
        """Scales (rows, k) for elements (rows, n), NaN where there is none."""
        if self.low == -1:
            rest, found = elements, []
            for _ in range(self.terms):
                found.append(rest.abs().nanmean(1, keepdim=True))
                rest = rest - torch.where(rest >= 0, 1.0, -1.0) * found[-1]
            return torch.cat(found, 1)
        largest = 2 ** (self.terms - 1)
        weights = torch.tensor([largest, *(-(2.0**j) for j in range(self.terms - 1))], device=elements.device)
        levels = LevelSet(tuple(range(1 - largest, largest + 1)))
        starts = [scales(sign * elements, levels, "mse") * sign for sign in (1, -1)]
        errors = [_error(elements, step * weights @ self.signs.to(elements.device).T) for step in starts]
        return torch.where(errors[0] <= errors[1], *starts) * weights


def _nearest(elements: Tensor, table: Tensor) -> Tensor:
    """The column of table (rows, 2^k) nearest to every element (rows, n): int64 (rows, n)."""
    best = torch.zeros_like(elements, dtype=torch.int64)
    least = torch.full_like(elements, torch.inf)
    for code in range(table.shape[1]):
        distance = (elements - table[:, code : code + 1]).abs()
        closer = distance < least
        best.masked_fill_(closer, code)
        least = torch.where(closer, distance, least)
    return best


def _error(elements: Tensor, table: Tensor) -> Tensor:
    """Squared error per row when every element takes the nearest value: (rows, 1)."""
    return (table.gather(1, _nearest(elements, table)) - elements).square().nansum(1, keepdim=True)


def alternate(elements: Tensor, scale: Tensor, signs: Tensor, rounds: int = 12) -> Tensor:
    """Codes and scales in turn: scale (rows, k) improved for elements (rows, n), NaN where there is none; signs (2^k, k).

    The scales for given codes solve (sum b b^T) a = sum b x, the sums over the elements of a row. A row stops when its error no
    longer falls.
    """
    best, least = scale, _error(elements, scale @ signs.T)
    present = (~torch.isnan(elements)).double()
    clean = elements.nan_to_num(0.0).double()
    wide = signs.double()
    for _ in range(rounds):
        codes = _nearest(elements, best @ signs.T)
        zeros = torch.zeros(len(elements), len(signs), dtype=torch.float64, device=elements.device)
        counts, sums = zeros.scatter_add(1, codes, present), zeros.scatter_add(1, codes, clean)
        normal = torch.einsum("rc,cj,ck->rjk", counts, wide, wide)
        ridge = 1e-9 * counts.sum(1).clamp(min=1.0)[:, None, None] * torch.eye(signs.shape[1], device=elements.device)
        found = torch.linalg.solve(normal + ridge, (sums @ wide).unsqueeze(2)).squeeze(2).float()
        error = _error(elements, found @ signs.T)
        better = error < least
        if not bool(better.any()):
            break
        best, least = torch.where(better, found, best), torch.minimum(error, least)
    return best
