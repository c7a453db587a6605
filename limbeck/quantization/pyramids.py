"""Pyramid vector quantization: short vectors as a length and a point of the integer pyramid, without a codebook in memory.

    v (d)  ->  p in Z^d with sum |p_i| = K, along v;   v^ = g p / ||p||_2

The points are numbered by counting: N(d, K) = N(d-1, K) + N(d, K-1) + N(d-1, K-1) of them, so an index takes ceil(log2 N) bits and is the
number of points before p. Lengths lie on uniform levels 0 .. 2^gain_bits - 1 of the largest one that shares the scale.

Source: Fischer, "A pyramid vector quantizer", 1986; of its use for weights: van der Ouderaa et al., "Pyramid vector quantization for LLMs",
2024 (there after rotations, with lengths at quantiles of a Beta distribution).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.codebooks import check_channels, whole_vectors
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, PerGroup, parameter_shape, rows, spread
from limbeck.quantization.packing import pack_wide, packed_length, unpack_wide


@functools.lru_cache(maxsize=64)
def count(entries: int, pulses: int) -> int:
    """N(d, K): the number of points of Z^d with sum |p_i| = K."""
    if pulses == 0:
        return 1
    if entries == 0:
        return 0
    return sum(math.comb(entries, m) * math.comb(pulses - 1, m - 1) * 2**m for m in range(1, min(entries, pulses) + 1))


@functools.lru_cache(maxsize=64)
def _before(entries: int, pulses: int) -> Tensor:
    """Points that come before coordinate i = +m, when k pulses are left for coordinates i and later: int64 (d, K + 1, K + 2).

    Values are ordered 0, 1, -1, 2, -2, ...; where m > k the entry is beyond every index.
    """
    table = torch.full((entries, pulses + 1, pulses + 2), 2**62, dtype=torch.int64)
    for i in range(entries):
        rest = entries - i - 1
        for k in range(pulses + 1):
            total = 0
            for m in range(k + 1):
                table[i, k, m] = total
                total += (1 if m == 0 else 2) * count(rest, k - m)
    return table


@functools.lru_cache(maxsize=64)
def _after(entries: int, pulses: int) -> Tensor:
    """N(d - i - 1, k): int64 (d, K + 1)."""
    return torch.tensor([[count(entries - i - 1, k) for k in range(pulses + 1)] for i in range(entries)])


def rank(points: Tensor, pulses: int) -> Tensor:
    """The number of every point, int64 (...), for points (..., d) of whole numbers with sum |p_i| = pulses."""
    points = points.long()
    entries = points.shape[-1]
    before, after = (t.to(points.device) for t in (_before(entries, pulses), _after(entries, pulses)))
    left = torch.full(points.shape[:-1], pulses, dtype=torch.int64, device=points.device)
    found = torch.zeros_like(left)
    for i in range(entries):
        size = points[..., i].abs()
        found += before[i][left, size] + torch.where(points[..., i] < 0, after[i][left - size], 0)
        left = left - size
    return found


def unrank(index: Tensor, entries: int, pulses: int) -> Tensor:
    """The reverse of `rank`: index int64 (...) below `count(entries, pulses)` -> int64 (..., entries)."""
    before, after = (t.to(index.device) for t in (_before(entries, pulses), _after(entries, pulses)))
    left = torch.full_like(index, pulses)
    found = []
    for i in range(entries):
        starts = before[i][left]
        size = (index.unsqueeze(-1) >= starts).sum(-1) - 1
        if i == entries - 1:
            size = left  # what is left belongs to the last one: for fewer pulses there is no point
        index = index - starts.gather(-1, size.unsqueeze(-1)).squeeze(-1)
        each = after[i].gather(0, (left - size).reshape(-1)).reshape(size.shape)
        negative = (size > 0) & (index >= each)
        index = index - torch.where(negative, each, 0)
        found.append(torch.where(negative, -size, size))
        left = left - size
    return torch.stack(found, -1)


def onto_pyramid(v: Tensor, pulses: int) -> Tensor:
    """The point along v: (..., d) -> whole numbers, float32 (..., d) with sum |p_i| = pulses.

    K v / ||v||_1 is rounded; then one coordinate at a time moves by 1, the one with the largest rounding error, until the sum is K. A
    vector of zeros gives (K, 0, ..).
    """
    size = v.abs().amax(-1, keepdim=True)
    v = torch.where(size > 0, v / torch.where(size > 0, size, 1.0), torch.eye(v.shape[-1], device=v.device)[0])
    y = pulses * v.abs() / v.abs().sum(-1, keepdim=True)
    p = y.round()
    for _ in range(v.shape[-1]):
        excess = p.sum(-1, keepdim=True) - pulses
        error = torch.where((excess > 0) & (p == 0), -torch.inf, (p - y) * excess.sign())
        at = torch.zeros_like(p).scatter(-1, error.argmax(-1, keepdim=True), 1.0)
        p = p - at * excess.sign()
    return torch.where(v < 0, -p, p)


@dataclass(frozen=True)
class PyramidGrid(Grid):
    """entries: d, consecutive elements of the last axis, 2 to 64; a short last vector is filled up with zeros. pulses: K. gain_bits: of a
    vector's length, 1 to 16. One scale per granularity: the largest length. Index and length together take at most 62 bits."""

    methods: ClassVar[tuple[str, ...]] = ("minmax",)
    entries: int = 8
    pulses: int = 6
    gain_bits: int = 4

    def __post_init__(self) -> None:
        check_whole("entries", self.entries, 2, 64)
        check_whole("pulses", self.pulses, 1, 64)
        check_whole("gain_bits", self.gain_bits, 1, 16)
        if self.vector_bits > 62:
            raise UsageError(f"{self}: an index of {self.vector_bits} bits, at most 62; take fewer entries or pulses")

    @property
    def points(self) -> int:
        return count(self.entries, self.pulses)

    @property
    def vector_bits(self) -> int:
        """Bits of a vector's index and length."""
        return (self.points - 1).bit_length() + self.gain_bits

    @property
    def bits(self) -> float:
        return self.vector_bits / self.entries

    def check_granularity(self, granularity: Granularity) -> None:
        whole_vectors(granularity, self.entries)

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, width = shape or (1,)
        stored = (*outer, packed_length(math.ceil(width / self.entries), self.vector_bits))
        return {"codes": (stored, torch.uint8), "scale": (parameter_shape(shape, granularity), SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer) -> Packed:
        check_channels(x, quantizer.granularity, self.entries)
        size = x.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # lengths must not overflow
        lengths = self._vectors(x.float() / size).norm(dim=-1)
        largest = rows(lengths, self._of_vectors(quantizer.granularity)).amax(1) * size
        scale = largest.clamp(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
        scale = torch.where(largest == 0, 0.0, as_stored(scale, quantizer.scale_type)).to(
            SCALE_TYPES[quantizer.scale_type]
        )
        return self._place(x, scale.reshape(parameter_shape(x.shape, quantizer.granularity)), quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self._place(x, packed.scale, quantizer.granularity)

    def codes(self, packed: Packed) -> Tensor:
        """Index x 2^gain_bits + length of every vector: int64 (..., vectors)."""
        *outer, width = packed.shape or (1,)
        return unpack_wide(packed.codes, self.vector_bits, math.ceil(width / self.entries)).reshape(*outer, -1)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        codes = self.codes(packed)
        points = unrank(codes >> self.gain_bits, self.entries, self.pulses).float()
        lengths = (codes & (2**self.gain_bits - 1)).float() / (2**self.gain_bits - 1)
        lengths = lengths * spread(packed.scale.float(), codes.shape, self._of_vectors(quantizer.granularity))
        values = points / points.norm(dim=-1, keepdim=True) * lengths.unsqueeze(-1)
        return values.flatten(-2)[..., : (packed.shape or (1,))[-1]].reshape(packed.shape)

    def check(self, packed: Packed) -> None:
        if int((self.codes(packed) >> self.gain_bits).max()) >= self.points:
            raise ArtifactError(f"a stored index is none of the {self.points} points of {self}")
        if (packed.scale < 0).any():
            raise ArtifactError(f"a stored scale of {self} is negative")

    def _vectors(self, x: Tensor) -> Tensor:
        x = x.float().contiguous().reshape(x.shape or (1,))  # lengths are sums: their order must not depend on strides
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % self.entries)).unflatten(-1, (-1, self.entries))

    def _of_vectors(self, granularity: Granularity) -> Granularity:
        return PerGroup(granularity.size // self.entries) if isinstance(granularity, PerGroup) else granularity

    def _place(self, x: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        vectors = self._vectors(x)
        points = onto_pyramid(vectors, self.pulses)
        each = spread(scale.float(), vectors.shape[:-1], self._of_vectors(granularity))
        along = (vectors / torch.where(each == 0, 1.0, each).unsqueeze(-1) * points).sum(-1) / points.norm(dim=-1)
        levels = 2**self.gain_bits - 1
        lengths = torch.where(each == 0, 0.0, (along * levels).round().clamp(0, levels)).long()
        index = torch.where(lengths == 0, 0, rank(points, self.pulses))  # a length of 0 has one code
        codes = (index << self.gain_bits) + lengths
        return Packed(pack_wide(codes, self.vector_bits), scale, None, tuple(x.shape))
