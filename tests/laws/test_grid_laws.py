"""Laws of every grid: what is stored decodes to the nearest values it has, is as large as it says, and damage is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from grid_cases import GRIDS, each, every, numbers, quantizer

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.contract import Packed
from limbeck.quantization.grids import IntegerGrid, PerTensor, Quantizer
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.named_grids import KINDS, NAMES, grid_from_json, grid_to_json, named
from limbeck.quantization.storage import packed_from_bytes, packed_to_bytes
from limbeck.quantization.two_of_four import TwoOfFourGrid


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
    entries = {"kmeans_vectors": 4, "two_of_four": 4, "two_of_four_8": 4, "e8": 8, "e8_3": 8}.get(grid, 1)
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
    if isinstance(q.grid, TwoOfFourGrid):
        return q.project(numbers(*packed.shape, seed=10 + trial), packed)
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
    if granularity in ("tensor", "rows"):
        pytest.skip("rows share them")
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
