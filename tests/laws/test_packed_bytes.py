"""Packed weights as bytes: accidents and forgeries are refused, whatever the checksum says."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct

import pytest
import torch
from grid_cases import CASES, numbers, quantizer

from limbeck.errors import ArtifactError
from limbeck.quantization.storage import packed_from_bytes, packed_to_bytes


def altered(draw: random.Random, data: bytes, written: list[bytes]) -> bytes:
    """The bytes with one accident of many kinds."""
    data, kind = bytearray(data), draw.choice(("flip", "bit", "header", "cut", "insert", "repeat", "empty", "swap"))
    at = draw.randrange(len(data))
    if kind == "flip":
        data[at] = draw.randrange(256)
    elif kind == "bit":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "header":
        data[draw.randrange(4, 4 + int.from_bytes(data[:4], "little"))] = draw.choice(b'0123456789-.{}[]",:eE')
    elif kind == "cut":
        del data[at:]
    elif kind == "insert":
        data[at:at] = draw.randbytes(draw.randint(1, 40))
    elif kind == "repeat":
        data += data[at:]
    elif kind == "swap":
        data[at:] = written[draw.randrange(len(written))][at:]
    else:
        data.clear()
    return bytes(data)


def everything_written() -> list[bytes]:
    made = []
    for grid, granularity in CASES:
        q = quantizer(grid, granularity, scale_type="bfloat16")
        made.append(packed_to_bytes(q.encode(numbers(4, 32)), q))
    return made


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def fuzz(cases: int) -> None:
    """Bytes as they happen to be damaged, and bytes under a checksum that fits: refused, or a tensor that can be read."""
    draw, written, refused = random.Random(7), everything_written(), 0
    bodies = [data[:-32] for data in written]
    for case in range(cases):
        data = altered(draw, written[case % len(written)], written)
        try:
            packed, its = packed_from_bytes(data)
        except ArtifactError as error:
            refused += 1
            assert str(error)
        else:
            assert data == packed_to_bytes(packed, its) and data in written
        try:
            packed, its = packed_from_bytes(sealed(altered(draw, bodies[case % len(bodies)], bodies)))
        except ArtifactError as error:
            assert str(error)
        else:
            assert its.decode(packed).shape == packed.shape
    assert refused > 0.9 * cases


def test_altered_bytes_are_refused():
    fuzz(600)


@pytest.mark.slow
def test_altered_bytes_are_refused_many_times():
    fuzz(10_000)


@pytest.mark.parametrize(
    ("grid", "granularity", "change"),
    [
        ("uint3", "channel", {"granularity": {"channel": 7}}),
        ("fourth_roots", "tensor", {"shape": [128]}),
        ("fourth_roots2", "tensor", {"shape": [1, 128]}),
    ],
)
def test_a_shape_that_the_grid_cannot_have_is_refused(grid, granularity, change):
    """With a matching checksum, and as many numbers as before."""
    q = quantizer(grid, granularity)
    data = packed_to_bytes(q.encode(numbers(4, 32)), q)[:-32]
    length = int.from_bytes(data[:4], "little")
    text = json.dumps({**json.loads(data[4 : 4 + length]), **change}).encode()
    with pytest.raises(ArtifactError, match="header"):
        packed_from_bytes(sealed(len(text).to_bytes(4, "little") + text + data[4 + length :]))


def test_a_forged_header_is_refused():
    """With a matching checksum, what the header says must still fit."""
    q = quantizer("fp8_e4m3")
    data = packed_to_bytes(q.encode(numbers(4, 32)), q)[:-32]
    (length,) = struct.unpack_from("<I", data)
    header, body = json.loads(data[4 : 4 + length]), data[4 + length :]

    def forged(change, body=body):
        text = json.dumps({**header, **change}).encode()
        return sealed(struct.pack("<I", len(text)) + text + body)

    assert torch.equal(packed_from_bytes(forged({}))[0].codes, packed_from_bytes(forged({}))[0].codes)
    for change in (
        {"shape": [4, 33]},
        {"shape": [4, -32]},
        {"shape": [2**39, 2**39]},
        {"shape": ["4", 32]},
        {"grid": {"kind": "NormalFloatGrid", "bits": 4}},
        {"granularity": {"channel": 0}},
        {"scale_type": "int8"},
        {"scale_type": "bfloat16"},
        {"method": "none"},
        {"grid": None},
    ):
        with pytest.raises(ArtifactError):
            packed_from_bytes(forged(change))
    for other in (b"\x7f" + body[1:], body[:-4] + struct.pack("<f", -1.0), body[:-4] + struct.pack("<f", math.inf)):
        with pytest.raises(ArtifactError):
            packed_from_bytes(forged({}, other))
