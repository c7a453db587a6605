"""Integer weights as blocks of GGUF, bit by bit, where the grid fits one exactly.

| type | block | values                       | bits per weight | what fits                                                                    |
|------|-------|------------------------------|-----------------|------------------------------------------------------------------------------|
| Q4_0 | 32    | d q,        q -8 .. 7        | 4.5             | symmetric up to 4 bits, asymmetric up to 3 bits, ternary, binary, e8         |
| Q4_1 | 32    | d q + m,    q 0 .. 15        | 5               | affine up to 4 bits                                                          |
| Q4_K | 256   | d q - d' m, q 0 .. 15        | 4.5             | asymmetric of 4 bits in groups of a multiple of 256 or whole rows            |
| Q5_0 | 32    | d q,        q -16 .. 15      | 5.5             | symmetric of 5 bits, asymmetric of 4 bits in other groups                    |
| Q8_0 | 32    | d q,        q -128 .. 127    | 8.5             | symmetric of 6 to 8 bits, asymmetric of 5 to 7 bits                          |

d, m and d' are float16. Groups hold a multiple of 32 inputs (or whole rows do), and a group's scale is repeated in its blocks. Q4_K has eight
scales and minima of 6 bits a block, each times d and d'; here all eight are alike, d = d' = s, the scales 1 and the minima z.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ExportError
from limbeck.export.integers import IntegerWeight, half_scales

BLOCK, SUPERBLOCK = 32, 256
TABLE = "symmetric up to 8 bits, asymmetric up to 7 bits, affine up to 4 bits, in groups of a multiple of 32"


def blocks_of(weight: IntegerWeight) -> tuple[str, np.ndarray]:
    """The type, and its bytes uint8 (out, bytes of a row). Raises ExportError for what no type holds exactly."""
    single = weight.group >= weight.shape[1]
    if weight.shape[1] % BLOCK or (not single and weight.group % BLOCK):
        raise ExportError(
            f"{weight.path}: rows of {weight.shape[1]} in groups of {weight.group} are no whole blocks of 32, as GGUF wants; quantize "
            f"with groups of a multiple of 32, or give requantize, which rounds again. GGUF holds {TABLE}"
        )
    scale = half_scales(weight, "gguf")
    if weight.offset is not None:
        return "Q4_1", _with_minimum(weight, scale)
    wide = single or weight.group % SUPERBLOCK == 0
    if weight.zero is not None and weight.bits == 4 and wide and weight.shape[1] % SUPERBLOCK == 0:
        return "Q4_K", _superblocks(weight, scale)
    codes, zero = weight.unsigned(weight.bits)
    columns = torch.arange(weight.shape[1]) // weight.group
    whole = codes.to(torch.int16) - zero[:, columns]
    width = weight.bits + (weight.zero is not None)  # q - z has a sign
    if width > 8:
        raise ExportError(
            f"{weight.path}: asymmetric weights of {weight.bits} bits fit no GGUF type; quantize with symmetric: true, or give requantize, "
            f"which rounds again. GGUF holds {TABLE}"
        )
    d = _bytes(weight.blocks(scale, BLOCK))
    if width <= 4:
        return "Q4_0", _rows(d, _nibbles(whole + 8, BLOCK))
    if width == 5:
        five = (whole + 16).view(len(whole), -1, BLOCK)
        high = np.packbits((five >> 4).numpy().astype(np.uint8), axis=-1, bitorder="little")
        return "Q5_0", _rows(d, high, _nibbles(whole + 16 & 15, BLOCK))
    return "Q8_0", _rows(d, whole.to(torch.int8).view(len(whole), -1, BLOCK).numpy().view(np.uint8))


def _with_minimum(weight: IntegerWeight, scale: Tensor) -> np.ndarray:
    offset = weight.offset.to(torch.float16)
    if weight.bits > 4 or not torch.equal(offset.float(), weight.offset):
        raise ExportError(
            f"{weight.path}: GGUF holds affine weights of at most 4 bits with offsets in float16; quantize with scale_type: float16"
        )
    parts = [_bytes(weight.blocks(parameter, BLOCK)) for parameter in (scale, offset)]
    return _rows(*parts, _nibbles(weight.codes, BLOCK))


def _superblocks(weight: IntegerWeight, scale: Tensor) -> np.ndarray:
    d = _bytes(weight.blocks(scale, SUPERBLOCK))
    zero = weight.blocks(weight.zero, SUPERBLOCK).numpy().astype(np.uint8)[..., None].repeat(4, -1)
    ones = np.ones_like(
        zero
    )  # six bits each of eight scales and minima: the first four in the low bits, the others in the last bytes
    return _rows(d, d, ones, zero, ones | zero << 4, _nibbles(weight.codes, 2 * BLOCK, SUPERBLOCK))


def _bytes(half: Tensor) -> np.ndarray:
    """float16 (out, blocks) -> uint8 (out, blocks, 2)."""
    return half.contiguous().numpy()[..., None].view(np.uint8)


def _nibbles(codes: Tensor, pair: int, block: int | None = None) -> np.ndarray:
    """Codes 0 .. 15 (out, n) -> uint8 (out, blocks, block / 2). A byte holds, of each `pair` of codes, one of the first half in its low
    four bits and its counterpart of the second half in the high ones."""
    halves = codes.numpy().astype(np.uint8).reshape(len(codes), -1, 2, pair // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1, (block or pair) // 2)


def _rows(*parts: np.ndarray) -> np.ndarray:
    """Parts (out, blocks, bytes) of each block in their order -> (out, bytes of a row)."""
    joined = np.concatenate(parts, -1)
    return np.ascontiguousarray(joined.reshape(len(joined), -1))
