"""Laws of every grid: what is stored decodes to the nearest values it has, is as large as it says, and damage is refused."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct

import pytest
import torch

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.contract import Packed
from limbeck.quantization.grids import IntegerGrid, PerChannel, PerGroup, PerTensor, Quantizer
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.named_grids import KINDS, NAMES, grid_from_json, grid_to_json, named
from limbeck.quantization.storage import packed_from_bytes, packed_to_bytes

GRIDS = {
    "int8": IntegerGrid(8),
    "int4": IntegerGrid(4),
    "uint3": IntegerGrid(3, False, False),
    "affine": named("affine", 3),
    "power_of_two": named("power_of_two", 4),
    "log_sqrt2": named("log_sqrt2", 4),
    "log_unsigned": named({"name": "log", "bits": 4, "signed": False}),
    "power": named("power", 4),
    "searched_power": named("searched_power", 3),
    "nf4": named("nf4"),
    "nf3": named("nf3"),
    "fp8_e4m3": named("fp8_e4m3"),
    "fp8_e5m2": named("fp8_e5m2"),
    "fp6_e3m2": named("fp6_e3m2"),
    "fp6_e2m3": named("fp6_e2m3"),
    "fp4": named("fp4"),
    "ternary": named("ternary"),
    "binary": named("binary"),
    "levels": named({"name": "levels", "levels": [-1, -0.25, 0, 0.5, 2]}),
    "binaries": named("binaries", 2),
    "binaries3": named("binaries", 3),
    "dual_binary": named("dual_binary"),
    "kmeans": named("kmeans", 3),
    "kmeans_vectors": named({"name": "kmeans", "index_bits": 4, "entries": 4}),
    "e8": named("e8", 2),
    "e8_3": named("e8", 3),
    "pyramid": named("pyramid"),
    "pyramid_wide": named({"name": "pyramid", "entries": 16, "pulses": 12, "gain_bits": 5}),
    "fourth_roots": named("fourth_roots", 1),
    "fourth_roots2": named("fourth_roots", 2),
}
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(0), "group": PerGroup(16)}
CASES = [
    (grid, granularity)
    for grid in GRIDS
    for granularity in GRANULARITIES
    if granularity == "tensor" or not grid.startswith(("fourth_roots", "pyramid_wide"))
]
each = pytest.mark.parametrize(("grid", "granularity"), CASES, ids=[f"{a}-{b}" for a, b in CASES])
every = pytest.mark.parametrize("grid", GRIDS)


def quantizer(grid, granularity="tensor", method=None, scale_type="float32"):
    made = GRIDS[grid]
    return Quantizer(made, GRANULARITIES[granularity], method or made.methods[0], scale_type)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.1


def equal(a: Packed, b: Packed) -> bool:
    return (
        a.shape == b.shape
        and list(a.tensors) == list(b.tensors)
        and all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a.tensors.values(), b.tensors.values()))
    )


def test_every_kind_and_name_is_here():
    assert {type(grid) for grid in GRIDS.values()} == set(KINDS.values())
    for name, (kind, _, width) in NAMES.items():
        assert type(named(name, 4 if width else None)) is kind


@each
def test_decoded_values_are_on_the_grid_already(grid, granularity):
    q = quantizer(grid, granularity)
    packed = q.encode(numbers(6, 40))
    values = q.decode(packed)
    again = q.project(values, packed)
    assert equal(again, packed) and torch.equal(q.decode(again), values)
    assert values.dtype == torch.float32 and values.shape == (6, 40)


@each
@pytest.mark.parametrize("scale_type", ["float32", "bfloat16"])
def test_no_other_value_is_nearer(grid, granularity, scale_type):
    """Within half a step: against the values of every code with the same parameters, element by element or vector by vector."""
    if grid.startswith(("fourth_roots", "pyramid")):
        pytest.skip("its codes are chosen by direction")
    q = quantizer(grid, granularity, scale_type=scale_type)
    x = numbers(4, 32, seed=1)
    packed = q.encode(x)
    x = numbers(4, 32, seed=2)  # other values, with the parameters that are there
    found = q.decode(q.project(x, packed))
    error = (found - x).square()
    entries = {"kmeans_vectors": 4, "e8": 8, "e8_3": 8}.get(grid, 1)
    error = error.unflatten(1, (-1, entries)).sum(2)
    generator = torch.Generator().manual_seed(3)
    for trial in range(256 if isinstance(q.grid, LevelGrid | IntegerGrid) else 100):
        codes = some_codes(q, packed, generator, trial)
        other = (q.decode(codes) - x).square().unflatten(1, (-1, entries)).sum(2)
        assert (error <= other * (1 + 1e-5) + 1e-9).all()


def some_codes(q, packed, generator, trial):
    """Other codes with the same parameters: all alike where a code is a number, else random ones."""
    count = 2 ** math.ceil(q.grid.bits) if not isinstance(q.grid, LevelGrid) else len(q.grid.table)
    if isinstance(q.grid, IntegerGrid):
        codes = torch.full(packed.shape, q.grid.low + trial % (q.grid.high - q.grid.low + 1))
        zero = packed.zero_point if packed.zero_point is not None else torch.zeros_like(packed.scale)
        return q.pack(codes.to(q.grid.code_type), packed.scale, zero)
    if isinstance(q.grid, LevelGrid):
        code = trial % count
        code = code if not math.isnan(q.grid.table[code]) else 0
        return Packed(q.grid.store(torch.full(packed.shape, code)), packed.scale, None, packed.shape)
    stored = torch.randint(0, 256, packed.codes.shape, generator=generator).to(torch.uint8)
    return Packed(stored, packed.scale, packed.zero_point, packed.shape, packed.codebook)


@each
@pytest.mark.parametrize("scale_type", ["float32", "bfloat16", "float16"])
def test_nbytes_is_what_is_stored_and_what_the_layout_says(grid, granularity, scale_type):
    q = quantizer(grid, granularity, scale_type=scale_type)
    packed = q.encode(numbers(6, 80))
    size = sum(
        math.prod(shape) * torch.empty(0, dtype=kind).element_size() for shape, kind in q.layout((6, 80)).values()
    )
    assert packed.nbytes == size
    assert packed.codes.numel() == 6 * math.ceil(80 * q.grid.bits / 8)
    written = packed_to_bytes(packed, q)
    assert written[-32 - packed.nbytes : -32] == b"".join(
        value.reshape(-1).view(torch.uint8).numpy().tobytes() for value in packed.tensors.values()
    )
    q.check(packed)


@each
def test_bytes_round_trip(grid, granularity):
    q = quantizer(grid, granularity, scale_type="bfloat16")
    packed = q.encode(numbers(4, 36))
    found, its = packed_from_bytes(packed_to_bytes(packed, q))
    assert equal(found, packed) and its == q


@every
def test_grids_round_trip_through_json(grid):
    value = json.loads(json.dumps(grid_to_json(GRIDS[grid])))
    assert grid_from_json(value) == GRIDS[grid]
    for bad in (
        None,
        [],
        {**value, "kind": "None"},
        {**value, "more": 1},
        {"kind": value["kind"], "bits": -1, "width": 99},
    ):
        with pytest.raises(ArtifactError, match="grid"):
            grid_from_json(bad)


@every
def test_what_cannot_be_stored_is_refused(grid):
    q = quantizer(grid)
    for bad in (torch.tensor([[1.0, math.nan]] * 2), torch.tensor([[math.inf, 0.0]] * 2), torch.zeros(0, 2)):
        with pytest.raises(DataError, match="empty or holds NaN"):
            q.encode(bad)
    with pytest.raises(UsageError, match="method='best'"):
        quantizer(grid, method="best")
    with pytest.raises(UsageError, match="scale_type"):
        quantizer(grid, scale_type="int8")


@each
def test_extreme_and_constant_numbers_stay_finite(grid, granularity):
    methods = [(method, "float32") for method in GRIDS[grid].methods]
    for method, scale_type in [*methods, (methods[0][0], "bfloat16"), (methods[0][0], "float16")]:
        q = quantizer(grid, granularity, method, scale_type)
        for value in (1e38, -1e38, 1e-38, 1e-45, 0.0):
            packed = q.encode(torch.full((2, 32), value))
            found = q.decode(packed)
            assert torch.isfinite(found).all()
            if value == 0.0:
                assert (found == 0).all()
        mixed = torch.tensor([[1e38, -1e38, 1e-30, 0.0] * 8] * 2)
        packed = q.encode(mixed)
        assert torch.isfinite(q.decode(packed)).all()
        q.check(packed)


@each
def test_a_power_of_two_passes_through(grid, granularity):
    """Nothing but the scales knows how large the numbers are."""
    for method in GRIDS[grid].methods:
        q = quantizer(grid, granularity, method)
        x = numbers(4, 32)
        small, large = q.encode(x), q.encode(x * 64)
        assert torch.equal(small.codes, large.codes)
        assert torch.equal(q.decode(large), 64 * q.decode(small))


@each
def test_what_shares_no_parameters_is_independent(grid, granularity):
    if granularity == "tensor":
        pytest.skip("everything shares them")
    q = quantizer(grid, granularity)
    x = numbers(4, 32)
    together = q.decode(q.encode(x))
    for row in range(4):
        torch.testing.assert_close(q.decode(q.encode(x[row : row + 1]))[0], together[row], rtol=1e-4, atol=1e-4)
    if granularity == "group":
        torch.testing.assert_close(q.decode(q.encode(x[:, :16])), together[:, :16], rtol=1e-4, atol=1e-4)


@every
def test_the_type_of_the_input_does_not_matter(grid):
    q = quantizer(grid)
    x = numbers(4, 32).to(torch.bfloat16)
    assert equal(q.encode(x), q.encode(x.float()))
    strided = x.float().t().contiguous().t()
    assert equal(q.encode(strided), q.encode(x.float()))


@each
def test_damaged_parameters_are_refused(grid, granularity):
    q = quantizer(grid, granularity)
    packed = q.encode(numbers(4, 32))
    for name, value in packed.tensors.items():
        if value.is_floating_point():
            damaged = value.clone()
            damaged.view(-1)[0] = math.nan
            with pytest.raises(ArtifactError, match="not finite"):
                q.check(Packed(**{**packed.__dict__, name: damaged}))
        with pytest.raises(ArtifactError, match="the stored tensors are"):
            q.check(Packed(**{**packed.__dict__, name: value.reshape(-1)[:-1]}))
        with pytest.raises(ArtifactError, match="the stored tensors are"):
            q.check(Packed(**{**packed.__dict__, name: value.to(torch.int64)}))


@pytest.mark.parametrize("grid", [g for g in GRIDS if isinstance(GRIDS[g], LevelGrid)])
def test_every_code_of_a_level_grid_comes_back(grid):
    made = GRIDS[grid]
    codes = torch.tensor([code for code, level in enumerate(made.table.tolist()) if not math.isnan(level)])
    assert torch.equal(made.nearest(made.table[codes]).long(), codes)
    assert torch.equal(made.unstore(made.store(codes), len(codes)).long(), codes)
    assert len(set(made.table[codes].tolist())) == len(codes)
    missing = [code for code in range(2 ** math.ceil(made.bits)) if code not in codes.tolist()]
    for code in missing:
        packed = Packed(made.store(torch.full((5,), code)), torch.tensor(1.0), None, (5,))
        if made.unstore(packed.codes, 5)[0] == code:
            with pytest.raises(ArtifactError, match="stand for no level"):
                Quantizer(made, PerTensor(), made.methods[0]).check(packed)


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
