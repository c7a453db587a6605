"""Codes in 32-bit words: 32 / bits codes a word along an axis, the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.quantization.packing import pack_bits, unpack_bits


def words(codes: Tensor, bits: int, axis: int = -1) -> Tensor:
    """codes (rows, n), 0 .. 2^bits - 1 with bits 2, 4 or 8 -> int32 (rows, ceil(n bits / 32)), filled up with 0; axis 0: along columns."""
    packed = pack_bits(codes.movedim(axis, -1).contiguous(), bits)
    packed = functional.pad(packed, (0, -packed.shape[-1] % 4))
    return packed.flatten().view(torch.int32).view(len(packed), -1).movedim(-1, axis).contiguous()


def unpack_words(packed: Tensor, bits: int, count: int, axis: int = -1) -> Tensor:
    """The reverse of `words`: int32 -> int64 codes, `count` along the axis."""
    rows = packed.movedim(axis, -1)
    rows = rows.flatten().view(torch.uint8).view(len(rows), -1)
    return unpack_bits(rows, bits, rows.shape[-1] * 8 // bits)[..., :count].long().movedim(-1, axis)
