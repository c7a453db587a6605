"""Range asymmetric numeral systems: whole numbers to bytes at the entropy of whatever distribution each of them has.

The state x is one large number. A symbol of frequency f and start b, of all 2^n, turns x into  (x // f) 2^n + x mod f + b:  it grows by
n - log2 f bits, which is -log2 p. Decoding runs the other way, so symbols are encoded last to first and decoded first to last.
Source: Duda, "Asymmetric numeral systems", 2013. State between 2^31 and 2^39, bytes at a time.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy

from limbeck.errors import ArtifactError, UsageError

PRECISION = 24  # bits of a frequency table; a table of V symbols wastes at most about V / 2^24 of the probability
_LOWEST = 1 << 31
_STATE = 5  # bytes that hold the last state


def frequencies(probabilities: numpy.ndarray, precision: int = PRECISION) -> numpy.ndarray:
    """Whole numbers of at least 1 that sum to 2^precision, as near to the probabilities (..., V) as may be. float64 -> int64.

    f_v = 1 + floor(p_v (2^n - V)), and what is left over goes to the most probable symbol. Only elementwise operations and sums
    in a fixed order, so that every machine gets the same numbers from the same probabilities.
    """
    count = probabilities.shape[-1]
    if not 1 <= precision <= 28 or count > 1 << (precision - 1):
        raise UsageError(f"precision={precision}: must be at most 28 and hold {count} symbols")
    made = numpy.floor(probabilities * ((1 << precision) - count)).astype(numpy.int64) + 1
    left = (1 << precision) - made.sum(-1, keepdims=True)
    largest = made.argmax(-1)[..., None]
    numpy.put_along_axis(made, largest, numpy.take_along_axis(made, largest, -1) + left, -1)
    if made.size and int(made.min()) < 1:
        raise UsageError("probabilities must be finite, at least 0 and sum to 1")
    return made


def starts(table: numpy.ndarray) -> numpy.ndarray:
    """Where each symbol begins: (..., V) frequencies -> (..., V + 1), the last the sum."""
    made = numpy.zeros((*table.shape[:-1], table.shape[-1] + 1), dtype=numpy.int64)
    numpy.cumsum(table, -1, out=made[..., 1:])
    return made


def encode(begins: Sequence[int], sizes: Sequence[int], precision: int = PRECISION) -> bytes:
    """The bytes of symbols given by their intervals: where each begins and its frequency, in the order in which they are decoded."""
    state, out = _LOWEST, bytearray()
    shift = 31 - precision + 8
    for begin, size in zip(reversed(begins), reversed(sizes)):
        limit = size << shift
        while state >= limit:
            out.append(state & 255)
            state >>= 8
        state = (state // size << precision) + state % size + begin
    out += state.to_bytes(_STATE, "little")
    out.reverse()
    return bytes(out)


class Decoder:
    """Takes symbols out of bytes: `pop(starts)` gives the next one; `finish()` says whether all was as it should be."""

    def __init__(self, data: bytes, precision: int = PRECISION):
        if len(data) < _STATE:
            raise ArtifactError(f"{len(data)} bytes hold no coder state: the stream is cut off")
        self.data, self.at, self.precision = data, _STATE, precision
        self.state = int.from_bytes(data[:_STATE], "big")
        self.mask = (1 << precision) - 1

    def pop(self, begins: numpy.ndarray) -> int:
        """The next symbol, whose table of starts (V + 1,) is given."""
        slot = self.state & self.mask
        symbol = int(begins.searchsorted(slot, "right")) - 1
        begin, end = int(begins[symbol]), int(begins[symbol + 1])
        state = (end - begin) * (self.state >> self.precision) + slot - begin
        while state < _LOWEST:
            if self.at >= len(self.data):
                raise ArtifactError("the stream is cut off: it ends before its last symbol")
            state = state << 8 | self.data[self.at]
            self.at += 1
        self.state = state
        return symbol

    def finish(self) -> None:
        """Raise ArtifactError unless exactly all bytes were used and the state is the encoder's first."""
        if self.at != len(self.data) or self.state != _LOWEST:
            raise ArtifactError("the stream is damaged: it does not end where its symbols do")


def seal(kind: bytes, numbers: Sequence[int], payload: bytes) -> bytes:
    """A stream: two bytes of `kind`, the numbers (7 bits per byte), the payload, and a CRC-32 of all before it."""
    head = bytearray(kind)
    for number in numbers:
        while number >= 128:
            head.append(number & 127 | 128)
            number >>= 7
        head.append(number)
    body = bytes(head) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def unseal(kind: bytes, count: int, data: bytes) -> tuple[list[int], bytes]:
    """The `count` numbers and the payload of a sealed stream. Raises ArtifactError for anything that is not one, or altered."""
    if len(data) < len(kind) + 4 or data[: len(kind)] != kind:
        raise ArtifactError(f"{len(data)} bytes that begin with {bytes(data[:2])!r} are no stream of the kind {kind!r}")
    body = data[:-4]
    if zlib.crc32(body) != struct.unpack("<I", data[-4:])[0]:
        raise ArtifactError("the stream is cut off or altered: its checksum differs")
    at, numbers = len(kind), []
    for _ in range(count):
        number = shift = 0
        while True:
            if at >= len(body) or shift > 63:
                raise ArtifactError("the stream is damaged: its header does not end")
            number |= (body[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if body[at - 1] < 128:
                break
        numbers.append(number)
    return numbers, body[at:]
