"""Entropy coding: whole numbers to as few bytes as their frequencies allow.

Huffman coding gives the symbol s of probability p_s a prefix-free code of whole length l_s with the least mean length:

    H(p) <= sum_s p_s l_s < H(p) + 1,   H(p) = -sum_s p_s log2 p_s

Only the lengths are stored: the canonical code numbers the words of each length in the order of their symbols. Source: Huffman,
"A Method for the Construction of Minimum-Redundancy Codes", 1952; Schwartz and Kallick, "Generating a Canonical Prefix Encoding", 1964.
"""

from __future__ import annotations

import heapq
import struct
import zlib
from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError

MAGIC = b"LHUF"
_HEADER = struct.Struct(
    "<4sIQQI"
)  # magic, size of the alphabet, symbols, bits of payload, checksum of all that follows
LARGEST = 1 << 16  # symbols of an alphabet


def code_lengths(counts: Sequence[int]) -> list[int]:
    """The lengths in bits of an optimal prefix-free code for symbols that occur `counts` times: 0 where a symbol does not occur.

    A single symbol gets 1 bit. Among equally good codes the one with the shortest longest word is taken. Raises UsageError
    for a negative count.
    """
    if any(count < 0 for count in counts):
        raise UsageError(f"counts must not be negative; the smallest is {min(counts)}")
    heap = [(count, 0, symbol, None, None) for symbol, count in enumerate(counts) if count]
    if len(heap) == 1:
        return [int(count > 0) for count in counts]
    heapq.heapify(heap)
    following = len(counts)
    while len(heap) > 1:
        one, two = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (one[0] + two[0], 1 + max(one[1], two[1]), following, one, two))
        following += 1
    lengths, open_ = [0] * len(counts), [(heap[0], 0)] if heap else []
    while open_:
        (_, _, name, left, right), depth = open_.pop()
        if left is None:
            lengths[name] = depth
        else:
            open_ += [(left, depth + 1), (right, depth + 1)]
    return lengths


def canonical(lengths: Sequence[int]) -> list[int]:
    """The code words, as numbers, of a canonical code with these lengths. Raises DataError where no prefix-free code has them."""
    words, word, before = [0] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        word <<= length - before
        if word >> length:
            raise DataError("the code table is impossible: its words are too short for a prefix-free code")
        words[symbol], word, before = word, word + 1, length
    return words


class Huffman:
    """Whole numbers to bytes and back, with the code table and a checksum in the stream.

        magic | alphabet | symbols | payload bits | CRC-32 | one byte per code length | payload, first bit highest

    encode: symbols of any shape, whole numbers from 0, to bytes. decode: those bytes to int64 (n,). `decode(encode(x))` is
    x flattened; nothing is bounded but the alphabet, 65536 symbols. decode raises DataError for bytes that are cut off, altered
    or longer than they say.
    """

    def encode(self, symbols: Tensor) -> bytes:
        flat = _symbols(symbols)
        counts = numpy.bincount(flat) if len(flat) else numpy.zeros(0, dtype=numpy.int64)
        lengths = code_lengths(counts.tolist())
        words, sizes = canonical(lengths), numpy.array(lengths, dtype=numpy.int64)
        longest = max(lengths, default=0)
        table = numpy.zeros((len(lengths), longest), dtype=numpy.uint8)  # each word's bits, left-aligned
        for symbol, (word, length) in enumerate(zip(words, lengths)):
            table[symbol, :length] = [word >> (length - 1 - place) & 1 for place in range(length)]
        used = numpy.arange(longest) < sizes[flat][:, None] if len(flat) else numpy.zeros((0, 0), dtype=bool)
        bits = table[flat][used] if len(flat) else numpy.zeros(0, dtype=numpy.uint8)
        body = bytes(lengths) + numpy.packbits(bits).tobytes()
        head = (len(lengths), len(flat), len(bits))
        return _HEADER.pack(MAGIC, *head, _checksum(head, body)) + body

    def decode(self, data: bytes) -> Tensor:
        if len(data) < _HEADER.size or data[:4] != MAGIC:
            raise DataError(f"{len(data)} bytes that do not begin with {MAGIC!r} are no Huffman stream")
        _, alphabet, count, bits, checksum = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        expected = alphabet + -(-bits // 8)
        if len(body) != expected:
            raise DataError(f"the Huffman stream is {'cut off' if len(body) < expected else 'too long'}: "
                            f"{len(body)} bytes after the header, {expected} expected")  # fmt: skip
        if _checksum((alphabet, count, bits), body) != checksum:
            raise DataError("the Huffman stream is damaged: its checksum differs")
        return _decoded(list(body[:alphabet]), body[alphabet:], bits, count)


def _decoded(lengths: list[int], payload: bytes, bits: int, count: int) -> Tensor:
    """`count` symbols from the payload, word by word."""
    codes = {(length, word): s for s, (length, word) in enumerate(zip(lengths, canonical(lengths))) if length}
    out, word, length = [], 0, 0
    for bit in numpy.unpackbits(numpy.frombuffer(payload, dtype=numpy.uint8))[:bits].tolist():
        word, length = word << 1 | bit, length + 1
        symbol = codes.get((length, word))
        if symbol is not None:
            out.append(symbol)
            word = length = 0
    if len(out) != count or length:
        raise DataError(f"the Huffman stream holds {len(out)} symbols where it says {count}")
    return torch.tensor(out, dtype=torch.int64)


def _checksum(head: tuple[int, int, int], body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("<IQQ", *head)))


def _symbols(symbols: Tensor) -> numpy.ndarray:
    if symbols.is_floating_point() or symbols.dtype == torch.bool:
        raise UsageError(f"symbols are {symbols.dtype}: they must be whole numbers")
    flat = symbols.detach().cpu().reshape(-1).to(torch.int64)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < LARGEST:
        raise UsageError(f"symbols from {int(flat.min())} to {int(flat.max())}: they must lie in 0 to {LARGEST - 1}")
    return flat.numpy()
