"""Bucketed levels: every run of `size` weights is scaled to [0, 1] by its own minimum and maximum and put on a few levels.

    v = (x - low) / (high - low),   code = the nearest of the levels p_1 < ... < p_s,   x^ = low + (high - low) p_code

Uniform levels are j / (s - 1); others can be learned, one set per tensor. Stored: Huffman-coded codes, two numbers per bucket, the
levels. Source: Polino, Pascanu and Alistarh, "Model compression via distillation and quantization", 2018, section 2.2.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from limbeck.codecs.entropy import Huffman
from limbeck.errors import DataError, UsageError
from limbeck.quantization.packing import packed_length

_HEADER = struct.Struct(
    "<IBIIQ"
)  # checksum of all that follows it, axes, bucket size, levels, bytes of the code stream


def buckets(x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (...) in runs of `size` elements, scaled to [0, 1]: v (buckets, size), low (buckets, 1) and span = high - low (buckets, 1).

    The last run is filled up with its last element; a run of equal elements has span 0 and v = 0. float32.
    """
    flat = x.float().reshape(-1)
    missing = -len(flat) % size
    rows = torch.cat([flat, flat[-1:].expand(missing)]).reshape(-1, size)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    span = high - low
    return (rows - low) / torch.where(span > 0, span, torch.ones_like(span)), low, span


def nearest(v: Tensor, levels: Tensor) -> Tensor:
    """The number of the nearest level, int64 (...) for v (...); the levels (s,) must rise. A tie goes to the lower one."""
    return torch.bucketize(v, (levels[1:] + levels[:-1]) / 2)


def on_levels(x: Tensor, levels: Tensor, size: int) -> Tensor:
    """x (...) on the levels (s,) of its buckets, in float32 and in the shape of x.

    Differentiable in the levels: dL/dp_j = sum over the elements on level j of span * dL/dx^. The elements get no gradient; for
    a straight-through one see `straight_through`.
    """
    with torch.no_grad():
        v, low, span = buckets(x, size)
        rising, order = levels.detach().sort()
        codes = order[nearest(v, rising)]
    return (low + span * levels[codes]).reshape(-1)[: x.numel()].reshape(x.shape)


def uniform_levels(bits: int) -> Tensor:
    """j / (2^bits - 1), j = 0 .. 2^bits - 1."""
    return torch.linspace(0, 1, 2**bits)


def quantile_levels(x: Tensor, bits: int, size: int) -> Tensor:
    """Levels with equally many elements of x (...) around each: quantiles (j + 1/2) / 2^bits of the scaled elements."""
    v = buckets(x, size)[0].reshape(-1)[: x.numel()]
    return v.quantile((torch.arange(2**bits) + 0.5) / 2**bits)


@dataclass(frozen=True)
class Bucketed:
    """What is stored of a tensor: codes uint8 (n,), low and span float32 (buckets,), levels float32 (s,), the shape and bucket size."""

    codes: Tensor
    low: Tensor
    span: Tensor
    levels: Tensor
    shape: tuple[int, ...]
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes with every code in equally many bits; `len(to_bytes())` is what the entropy coder makes of it."""
        bits = max(1, (len(self.levels) - 1).bit_length())
        return packed_length(len(self.codes), bits) + 4 * (len(self.low) + len(self.span) + len(self.levels))

    def to_bytes(self) -> bytes:
        """header with a checksum | shape | Huffman-coded codes | low | span | levels"""
        stream = Huffman().encode(self.codes)
        shape = struct.pack(f"<{len(self.shape)}Q", *self.shape)
        numbers = torch.cat([self.low, self.span, self.levels]).numpy().astype("<f4").tobytes()
        data = _HEADER.pack(0, len(self.shape), self.size, len(self.levels), len(stream)) + shape + stream + numbers
        return struct.pack("<I", zlib.crc32(data[4:])) + data[4:]

    @staticmethod
    def from_bytes(data: bytes) -> Bucketed:
        """The reverse of `to_bytes`. Raises DataError for bytes that are cut off, altered or too long."""
        if len(data) < _HEADER.size or zlib.crc32(data[4:]) != struct.unpack_from("<I", data)[0]:
            raise DataError(f"{len(data)} bytes are no bucketed weights: cut off or damaged, their checksum differs")
        _, axes, size, levels, length = _HEADER.unpack_from(data)
        start = _HEADER.size + 8 * axes
        shape = struct.unpack_from(f"<{axes}Q", data, _HEADER.size)
        codes = Huffman().decode(data[start : start + length])
        count = int(numpy.prod(shape, dtype=object)) if shape else 1
        runs = -(-count // size) if size else 0
        rest = data[start + length :]
        if count != len(codes) or not size or len(rest) != 4 * (2 * runs + levels):
            raise DataError("the bucketed weights are damaged: their shape, codes and scales do not fit")
        if len(codes) and int(codes.max()) >= levels:
            raise DataError(f"the bucketed weights are damaged: code {int(codes.max())} of {levels} levels")
        numbers = torch.from_numpy(numpy.frombuffer(rest, dtype="<f4").astype(numpy.float32))
        low, span, places = numbers.split([runs, runs, levels])
        return Bucketed(codes.to(torch.uint8), low, span, places, shape, size)


@dataclass(frozen=True)
class BucketQuantizer:
    """tensor -> Bucketed -> tensor. bits: 1 to 8, so 2^bits levels; size: elements per bucket; levels: rising, 2^bits of them in
    [0, 1], or None for uniform ones. With uniform levels |x - decode(encode(x))| <= span / (2 (2^bits - 1)).

    Raises UsageError for settings out of range, DataError for a tensor that is empty or not finite.
    """

    bits: int = 4
    size: int = 256
    levels: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check(self.bits, self.size)
        if self.levels is not None and (len(self.levels) != 2**self.bits or list(self.levels) != sorted(self.levels)):
            raise UsageError(f"levels={self.levels!r}: {self.bits} bits need {2**self.bits} rising levels")

    def encode(self, x: Tensor) -> Bucketed:
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise DataError(
                f"cannot quantize a tensor of shape {tuple(x.shape)} that is empty or holds NaN or infinity"
            )
        places = uniform_levels(self.bits) if self.levels is None else torch.tensor(self.levels, dtype=torch.float32)
        v, low, span = buckets(x.detach().cpu(), self.size)
        codes = nearest(v, places).reshape(-1)[: x.numel()].to(torch.uint8)
        return Bucketed(codes, low.squeeze(1), span.squeeze(1), places, tuple(x.shape), self.size)

    def decode(self, stored: Bucketed) -> Tensor:
        """The tensor, float32, in its shape."""
        owner = torch.arange(len(stored.codes)) // stored.size
        values = stored.low[owner] + stored.span[owner] * stored.levels[stored.codes.long()]
        return values.reshape(stored.shape)


def check(bits: int, size: int) -> None:
    """Raise UsageError for widths outside 1 to 8 or buckets of fewer than 2 elements."""
    if type(bits) is not int or not 1 <= bits <= 8:
        raise UsageError(f"bits={bits!r}: bucketed levels take 1 to 8 bits")
    if type(size) is not int or size < 2:
        raise UsageError(f"size={size!r}: a bucket has at least 2 elements")
