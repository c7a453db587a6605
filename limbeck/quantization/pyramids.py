"""Pyramid vector quantization: short vectors as a length and a point of the integer pyramid, without a codebook in memory.

    v (d)  ->  p in Z^d with sum |p_i| = K, along v;   v^ = g p / ||p||_2

The points are numbered by counting: N(d, K) = N(d-1, K) + N(d, K-1) + N(d-1, K-1) of them, so an index takes ceil(log2 N) bits and is the
number of points before p. Lengths lie on 2^b levels:

    "uniform"   i / (2^b - 1) of the largest one that shares the scale
    "beta"      sqrt(F^-1((i + 1/2) / 2^b)) of the norm of all n numbers that share it, F of Beta(d/2, (n - d)/2): where the lengths of a
                vector's parts lie that is uniform on the sphere, as rotated weights nearly are. There is no level 0.

The length stored is the level nearest to the part of v along p. Vectors one after another, with errors made up for: `vector_feedback`.

Source: Fischer, "A pyramid vector quantizer", 1986; of its use for weights, with Beta quantiles after a rotation: van der Ouderaa et al.,
"Pyramid vector quantization for LLMs", 2024, of which the abstract and openings were read; where levels lie in their cells is a choice here.
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
from limbeck.quantization.granularity import Granularity, PerChannel, PerGroup, PerRows, parameter_shape, rows, spread
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


@functools.lru_cache(maxsize=64)
def gain_levels(kind: str, bits: int, entries: int, shared: int) -> Tensor:
    """The levels of lengths in units of the scale, rising, float32 (2^bits,); see the module.

    shared: n, how many numbers share a scale. Where one vector has a scale of its own, every "beta" level is 1.
    """
    if kind == "uniform":
        return torch.arange(2**bits) / (2**bits - 1)
    if shared <= entries:
        return torch.ones(2**bits)
    from scipy.special import betaincinv

    middles = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    squares = betaincinv(entries / 2, (shared - entries) / 2, middles.numpy())
    return torch.from_numpy(squares).sqrt().float()


@dataclass(frozen=True)
class PyramidGrid(Grid):
    """entries: d, consecutive elements of the last axis, 2 to 64; a short last vector is filled up with zeros. pulses: K. gain_bits: of a
    vector's length, 1 to 16. gains: "uniform" or "beta", where lengths lie. One scale per granularity: the largest length, or with "beta"
    the norm. Index and length together take at most 62 bits."""

    methods: ClassVar[tuple[str, ...]] = ("minmax",)
    entries: int = 8
    pulses: int = 6
    gain_bits: int = 4
    gains: str = "uniform"

    def __post_init__(self) -> None:
        check_whole("entries", self.entries, 2, 64)
        check_whole("pulses", self.pulses, 1, 64)
        check_whole("gain_bits", self.gain_bits, 1, 16)
        if self.gains not in ("uniform", "beta"):
            raise UsageError(f"gains={self.gains!r}: allowed are 'uniform' and 'beta'")
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
        if self.gains == "beta" and isinstance(granularity, PerRows):
            raise UsageError(
                f"{granularity}: runs of rows differ in length, and Beta quantiles follow from it; take gains='uniform' or 'channel'"
            )

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, width = shape or (1,)
        stored = (*outer, packed_length(math.ceil(width / self.entries), self.vector_bits))
        return {"codes": (stored, torch.uint8), "scale": (parameter_shape(shape, granularity), SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer) -> Packed:
        check_channels(x, quantizer.granularity, self.entries)
        size = x.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)  # lengths must not overflow
        lengths = self._vectors(x.float() / size).norm(dim=-1)
        lengths = rows(lengths, self._of_vectors(quantizer.granularity), fill=0.0)
        largest = (lengths.norm(dim=1) if self.gains == "beta" else lengths.amax(1)) * size
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
        scale = spread(packed.scale.float(), codes.shape, self._of_vectors(quantizer.granularity))
        values = self._values(codes, scale, self.levels(packed.shape, quantizer.granularity))
        return values.flatten(-2)[..., : (packed.shape or (1,))[-1]].reshape(packed.shape)

    def check(self, packed: Packed) -> None:
        if int((self.codes(packed) >> self.gain_bits).max()) >= self.points:
            raise ArtifactError(f"a stored index is none of the {self.points} points of {self}")
        if (packed.scale < 0).any():
            raise ArtifactError(f"a stored scale of {self} is negative")

    def levels(self, shape: Sequence[int], granularity: Granularity) -> Tensor:
        """`gain_levels` for a tensor of this shape."""
        *outer, width = shape or (1,)
        width = math.ceil(width / self.entries) * self.entries
        if isinstance(granularity, PerGroup):
            shared = min(granularity.size, width)
        else:
            shared = math.prod(outer) * width
            shared = shared // shape[granularity.axis] if isinstance(granularity, PerChannel) else shared
        return gain_levels(self.gains, self.gain_bits, self.entries, shared if self.gains == "beta" else 0)

    def nearest_vectors(
        self, x: Tensor, scale: Tensor, levels: Tensor, metric: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes int64 (...) and values float32 (..., d) of vectors x (..., d), with scales (...) and `levels`.

        metric: symmetric M (d, d), in which the error of the length is measured, (x - g p)^T M (x - g p); by default the identity.
        """
        points = onto_pyramid(x, self.pulses)
        unit = points / points.norm(dim=-1, keepdim=True)
        each = torch.where(scale == 0, 1.0, scale)
        if metric is None:
            along = (x / each.unsqueeze(-1) * unit).sum(-1)
        else:
            turned = unit.to(metric.dtype) @ metric
            found = (x / each.unsqueeze(-1) * turned).sum(-1) / (unit * turned).sum(-1)
            along = found.to(torch.float32)
        levels = levels.to(x.device)
        lengths = torch.bucketize(along, (levels[1:] + levels[:-1]) / 2)
        lengths = torch.where((scale == 0) | (levels[0] == levels[-1]), 0, lengths)
        codes = (rank(points, self.pulses) << self.gain_bits) + lengths
        codes = torch.where(levels[lengths] * scale == 0, lengths, codes)  # a length of 0 has one code
        return codes, self._values(codes, scale, levels)

    def store(self, codes: Tensor) -> Tensor:
        """What is stored of codes (..., vectors): uint8."""
        return pack_wide(codes, self.vector_bits)

    def _values(self, codes: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
        points = unrank(codes >> self.gain_bits, self.entries, self.pulses).float()
        lengths = levels.to(codes.device)[codes & (2**self.gain_bits - 1)] * scale
        return points / points.norm(dim=-1, keepdim=True) * lengths.unsqueeze(-1)

    def _vectors(self, x: Tensor) -> Tensor:
        x = x.float().contiguous().reshape(x.shape or (1,))  # lengths are sums: their order must not depend on strides
        return torch.nn.functional.pad(x, (0, -x.shape[-1] % self.entries)).unflatten(-1, (-1, self.entries))

    def _of_vectors(self, granularity: Granularity) -> Granularity:
        return PerGroup(granularity.size // self.entries) if isinstance(granularity, PerGroup) else granularity

    def _place(self, x: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        vectors = self._vectors(x)
        each = spread(scale.float(), vectors.shape[:-1], self._of_vectors(granularity)).expand(vectors.shape[:-1])
        codes, _ = self.nearest_vectors(vectors, each, self.levels(x.shape, granularity))
        return Packed(self.store(codes), scale, None, tuple(x.shape))
