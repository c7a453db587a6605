"""One quantized tensor as bytes: a header in JSON, then the stored tensors, under one checksum. Nothing is pickled.

    length of the header | header | codes | scale | zero_point | codebook | SHA-256 of all before

The header says grid, granularity, scale type and shape; types and sizes of the tensors follow from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.files import canonical_json
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import granularity_from_json, granularity_to_json
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.named_grids import grid_from_json, grid_to_json

_LENGTH = struct.Struct("<I")
_DIGEST = 32


def packed_to_bytes(packed: Packed, quantizer: Quantizer) -> bytes:
    """The bytes of a packed tensor. Raises ArtifactError for one that the quantizer cannot have made."""
    quantizer.check(packed)
    if any(packed.tensors[name].dtype is not kind for name, (_, kind) in quantizer.layout(packed.shape).items()):
        raise ArtifactError(
            f"scales and codebooks are stored as {quantizer.scale_type}: encode again, or set scale_type"
        )
    header = {
        "grid": grid_to_json(quantizer.grid),
        "granularity": granularity_to_json(quantizer.granularity),
        "method": quantizer.method,
        "scale_type": quantizer.scale_type,
        "shape": list(packed.shape),
    }
    text = canonical_json(header).encode()
    tensors = packed.tensors
    parts = [_LENGTH.pack(len(text)), text, *(_raw(tensors[name]) for name in quantizer.layout(packed.shape))]
    data = b"".join(parts)
    return data + hashlib.sha256(data).digest()


def packed_from_bytes(data: bytes) -> tuple[Packed, Quantizer]:
    """The packed tensor, and the quantizer that decodes it. Raises ArtifactError for bytes that are cut off, altered or too long."""
    if len(data) < _LENGTH.size + _DIGEST or hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise ArtifactError(f"{len(data)} bytes are no packed tensor: cut off or altered, their checksum differs")
    (length,) = _LENGTH.unpack_from(data)
    body = data[_LENGTH.size : -_DIGEST]
    try:
        header = json.loads(body[:length])
        quantizer, shape = _quantizer(header)
        layout = quantizer.layout(shape)
    except (ValueError, LookupError, TypeError, UsageError, DataError, RecursionError) as error:
        raise ArtifactError(f"the header of a packed tensor cannot be read: {error}") from error
    at, found = length, {}
    sizes = {
        name: math.prod(shape) * torch.empty(0, dtype=kind).element_size() for name, (shape, kind) in layout.items()
    }
    if length > len(body) or at + sum(sizes.values()) != len(body):
        raise ArtifactError(f"a packed tensor of {sum(sizes.values())} bytes is stored in {len(body) - length}")
    for name, (dimensions, kind) in layout.items():
        raw = torch.frombuffer(bytearray(body[at : at + sizes[name]]), dtype=torch.uint8)
        found[name] = raw.view(kind).reshape(dimensions)
        at += sizes[name]
    packed = Packed(found["codes"], found.get("scale"), found.get("zero_point"), shape, found.get("codebook"))
    quantizer.check(packed)
    return packed, quantizer


def _quantizer(header: Any) -> tuple[Quantizer, tuple[int, ...]]:
    grid, granularity = grid_from_json(header["grid"]), granularity_from_json(header["granularity"])
    shape = tuple(header["shape"])
    if not all(type(size) is int and 0 < size < 2**40 for size in shape) or math.prod(shape) > 2**40:
        raise ValueError(f"shape {shape}")
    return Quantizer(grid, granularity, header["method"], header["scale_type"]), shape


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
