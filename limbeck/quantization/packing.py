"""Bit packing: unsigned codes of b bits, stored without gaps in bytes along the last axis.

    codes (..., n) in [0, 2^b)  <->  bytes (..., ceil(n b / 8)) of uint8

Where b divides 8 (1, 2, 4, 8), a byte holds 8/b whole codes, the first in its lowest bits; other widths run on across
bytes, least significant bit first. Either way code i occupies bits [i b, (i+1) b) of its row.

Codes of three values need no 2 bits: five of them, read as digits of a number below 3^5 = 243, go into a byte (1.6 bits each).
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UsageError


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """codes (..., n), whole numbers in [0, 2^bits) -> uint8 (..., ceil(n bits / 8)). Raises UsageError for bits outside 1..8."""
    _check(bits)
    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes
    count = codes.shape[-1]
    codes = torch.nn.functional.pad(codes, (0, -count % 8)).unflatten(-1, (-1, 8))
    packed = codes.new_zeros(*codes.shape[:-1], bits)
    for code, (byte, shift) in enumerate(_starts(bits)):
        packed[..., byte] |= codes[..., code] << shift
        if shift + bits > 8:
            packed[..., byte + 1] |= codes[..., code] >> (8 - shift)
    return packed.flatten(-2)[..., : packed_length(count, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 (..., ceil(count bits / 8)) -> codes uint8 (..., count)."""
    _check(bits)
    if packed.shape[-1] != packed_length(count, bits):
        raise UsageError(
            f"{count} codes of {bits} bits take {packed_length(count, bits)} bytes a row, {packed.shape[-1]} were given"
        )
    if bits == 8:
        return packed
    if 8 % bits == 0:
        shifts = torch.arange(8 // bits, dtype=torch.uint8, device=packed.device) * bits
        return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
    groups = -(-count // 8)
    packed = torch.nn.functional.pad(packed, (0, groups * bits - packed.shape[-1])).unflatten(-1, (groups, bits))
    codes = packed.new_empty(*packed.shape[:-1], 8)
    for code, (byte, shift) in enumerate(_starts(bits)):
        value = packed[..., byte] >> shift
        if shift + bits > 8:
            value |= packed[..., byte + 1] << (8 - shift)
        codes[..., code] = value & (2**bits - 1)
    return codes.flatten(-2)[..., :count]


def _starts(bits: int) -> list[tuple[int, int]]:
    """Byte and lowest bit of each of eight codes, which fill `bits` bytes."""
    return [divmod(code * bits, 8) for code in range(8)]


TRITS = 5  # per byte


def pack_trits(codes: Tensor) -> Tensor:
    """codes (..., n) in {0, 1, 2} -> uint8 (..., ceil(n / 5)); the first code of a byte is its lowest digit in base 3."""
    digits = torch.nn.functional.pad(codes.to(torch.uint8), (0, -codes.shape[-1] % TRITS)).unflatten(-1, (-1, TRITS))
    return (digits * _powers(codes.device)).sum(-1, dtype=torch.int64).to(torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """uint8 (..., ceil(count / 5)), each below 243 -> codes uint8 (..., count) in {0, 1, 2}."""
    if packed.shape[-1] != -(-count // TRITS):
        raise UsageError(f"{count} trits take {-(-count // TRITS)} bytes a row, {packed.shape[-1]} were given")
    digits = torch.arange(256, device=packed.device).unsqueeze(-1) // _powers(packed.device) % 3  # of every byte
    found = digits.to(torch.uint8).index_select(0, packed.flatten().int())
    return found.view(*packed.shape[:-1], -1)[..., :count]


def pack_wide(codes: Tensor, bits: int) -> Tensor:
    """Codes of up to 62 bits: int64 (..., n) in [0, 2^bits) -> uint8 (..., ceil(n bits / 8)), the layout of `pack_bits`."""
    places = torch.arange(bits, device=codes.device)
    return pack_bits((codes.unsqueeze(-1) >> places & 1).flatten(-2), 1)


def unpack_wide(packed: Tensor, bits: int, count: int) -> Tensor:
    """uint8 (..., ceil(count bits / 8)) -> codes int64 (..., count)."""
    stream = unpack_bits(packed, 1, count * bits).long().unflatten(-1, (count, bits))
    return (stream << torch.arange(bits, device=packed.device)).sum(-1)


def _powers(device: torch.device) -> Tensor:
    return 3 ** torch.arange(TRITS, dtype=torch.uint8, device=device)


def _check(bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise UsageError(f"bits={bits!r}: codes of 1 to 8 bits can be packed")
