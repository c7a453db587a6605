"""Codebooks: numbers, or short vectors, replaced by the nearest of a few that k-means found.

    x (..., n)  ->  vectors (..., n / d, d)  ->  the index of the nearest of K = 2^bits centres  ->  bits / d bits a value

Every tensor, channel or group has a codebook of its own. One-dimensional codebooks (d = 1) are the weight sharing of Han et al.,
"Deep compression", ICLR 2016, section 3; longer ones the vector quantization of Gong et al., 2014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.codecs.vector_quantization import nearest
from limbeck.errors import DataError, UsageError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import (
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    from_rows,
    parameter_shape,
    rows,
)
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits


@dataclass(frozen=True)
class CodebookGrid(Grid):
    """bits: of an index, 1 to 8. entries: d, consecutive elements of the last axis that share an index; a last vector that is short
    is filled up with zeros. iterations: of Lloyd's algorithm. Stored: indices, and codebooks (*parameter_shape, 2^bits, d).

    With d = 1 the centres start at quantiles; else at examples drawn with a fixed seed. Where the elements that share a codebook take at
    most 2^bits values, they are kept exactly. Groups must hold whole vectors; channels are those of the first axes when d > 1.
    """

    methods: ClassVar[tuple[str, ...]] = ("kmeans",)
    index_bits: int = 4
    entries: int = 1
    iterations: int = 20

    def __post_init__(self) -> None:
        check_whole("index_bits", self.index_bits, 1, 8)
        check_whole("entries", self.entries, 1, 64)
        check_whole("iterations", self.iterations, 1, 1000)

    @property
    def bits(self) -> float:
        return self.index_bits / self.entries

    def check_granularity(self, granularity: Granularity) -> None:
        whole_vectors(granularity, self.entries)

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        width = packed_length(math.ceil(count / self.entries), self.index_bits)
        book = (*parameter_shape(shape, granularity), 2**self.index_bits, self.entries)
        return {"codes": ((*outer, width), torch.uint8), "codebook": (book, SCALE_TYPES[scale_type])}

    def encode(self, x: Tensor, quantizer) -> Packed:
        check_channels(x, quantizer.granularity, self.entries)
        kind = SCALE_TYPES[quantizer.scale_type]
        vectors = self._vectors(x, quantizer.granularity)
        books = torch.stack([centres(row, 2**self.index_bits, self.iterations) for row in vectors])
        shape = (*parameter_shape(x.shape, quantizer.granularity), *books.shape[1:])
        limit = torch.finfo(kind).max
        return self._place(x, books.clamp(-limit, limit).to(kind).reshape(shape), quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self._place(x, packed.codebook, quantizer.granularity)

    def codes(self, packed: Packed) -> Tensor:
        *outer, count = packed.shape or (1,)
        return unpack_bits(packed.codes, self.index_bits, math.ceil(count / self.entries)).reshape(*outer, -1)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        codes = self.codes(packed)
        books = packed.codebook.float().reshape(-1, *packed.codebook.shape[-2:])
        index = rows(codes.long(), self._of_vectors(quantizer.granularity))
        vectors = books.gather(1, index.unsqueeze(2).expand(-1, -1, self.entries))
        wide = torch.stack(
            [from_rows(v, codes.shape, self._of_vectors(quantizer.granularity)) for v in vectors.unbind(2)], -1
        )
        *_, count = packed.shape or (1,)
        return wide.flatten(-2)[..., :count].reshape(packed.shape)

    def check(self, packed: Packed) -> None:
        """Every index is on the grid."""

    def _vectors(self, x: Tensor, granularity: Granularity) -> Tensor:
        """The vectors that share a codebook: (codebooks, vectors, d)."""
        x = x.float().reshape(x.shape or (1,))
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % self.entries)).unflatten(-1, (-1, self.entries))
        return torch.stack([rows(part, self._of_vectors(granularity)) for part in x.unbind(-1)], -1)

    def _of_vectors(self, granularity: Granularity) -> Granularity:
        if isinstance(granularity, PerGroup) and granularity.size > self.entries:
            return PerGroup(granularity.size // self.entries)
        return granularity

    def _place(self, x: Tensor, books: Tensor, granularity: Granularity) -> Packed:
        vectors = self._vectors(x, granularity)
        flat = books.float().reshape(-1, *books.shape[-2:])
        index = torch.stack([assign(row, book) for row, book in zip(vectors, flat)])
        *outer, count = x.shape or (1,)
        shape = (*outer, math.ceil(count / self.entries))
        codes = from_rows(index, shape, self._of_vectors(granularity))
        return Packed(pack_bits(codes, self.index_bits), None, None, tuple(x.shape), books)


def whole_vectors(granularity: Granularity, entries: int) -> None:
    """Raise UsageError where elements that share parameters do not form whole vectors of the last axis."""
    if entries == 1 or isinstance(granularity, PerTensor):
        return
    if isinstance(granularity, PerGroup) and (granularity.size % entries or granularity.size < 2 * entries):
        raise UsageError(
            f"group size {granularity.size}: must be a multiple of {entries}, the entries of a vector, and more than one"
        )
    if isinstance(granularity, PerChannel) and granularity.axis != 0:
        raise UsageError(
            f"channel axis {granularity.axis}: vectors lie along the last axis, so channels are those of axis 0"
        )


def check_channels(x: Tensor, granularity: Granularity, entries: int) -> None:
    """Raise DataError for a vector that is asked for a set of parameters per element."""
    if entries > 1 and x.dim() < 2 and isinstance(granularity, PerChannel):
        raise DataError(f"shape {tuple(x.shape)}: vectors per channel need at least two axes")


def assign(vectors: Tensor, book: Tensor) -> Tensor:
    """The index of the nearest centre, int64 (n,); vectors (n, d), book (K, d). The smallest of equals."""
    if vectors.shape[1] > 1:
        return nearest(vectors.unsqueeze(1), book.unsqueeze(0))[:, 0]
    rising, order = book[:, 0].sort(stable=True)
    at = torch.bucketize(vectors[:, 0].contiguous(), (rising[1:] + rising[:-1]) / 2)
    first = torch.searchsorted(rising, rising[at].contiguous())  # centres may be equal
    return order[first]


def centres(vectors: Tensor, count: int, iterations: int) -> Tensor:
    """Lloyd's algorithm: `count` centres of vectors (n, d), without a random generator of the caller's; float32 (count, d).

    Runs until nothing moves, at most `iterations` times. A centre without vectors moves to the vector that is worst served.
    """
    different = torch.unique(vectors, dim=0)
    if len(different) <= count:
        return torch.cat([different, different[-1:].expand(count - len(different), -1)])
    size = vectors.abs().max()
    vectors = vectors / size
    if vectors.shape[1] == 1:
        at = (torch.arange(count, device=vectors.device) + 0.5) / count * (len(different) - 1)
        book = 0.5 * (
            different[at.long()] / size + vectors.sort(0).values[((at / len(different)) * len(vectors)).long()]
        )
    else:
        generator = torch.Generator().manual_seed(0)
        book = different[torch.randperm(len(different), generator=generator)[:count].to(vectors.device)] / size
    for _ in range(iterations):
        index = assign(vectors, book)
        sizes = torch.bincount(index, minlength=count).unsqueeze(1)
        found = torch.zeros_like(book).index_add_(0, index, vectors) / sizes.clamp(min=1)
        empty = (sizes == 0).squeeze(1)
        if bool(empty.any()):
            distance = (vectors - book[index]).square().sum(1)
            found[empty] = vectors[distance.topk(int(empty.sum())).indices]
        if torch.equal(found, book):
            break
        book = found
    return book * size
