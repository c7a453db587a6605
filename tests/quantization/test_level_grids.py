"""Formats against torch's own, published tables, naive loops and closed forms."""

import itertools

import pytest
import torch

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.binaries import BinarySum, alternate
from limbeck.quantization.codebooks import CodebookGrid
from limbeck.quantization.formats import (
    BinaryGrid,
    LevelSet,
    LogGrid,
    MinifloatGrid,
    NormalFloatGrid,
    PowerGrid,
    TernaryGrid,
)
from limbeck.quantization.fourth_roots import FourthRootGrid
from limbeck.quantization.grids import IntegerGrid, Packed, PerChannel, PerGroup, PerRows, PerTensor, Quantizer
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.levels import fit_scale, search_scale
from limbeck.quantization.named_grids import named
from limbeck.quantization.packing import pack_bits, pack_trits, pack_wide, unpack_trits, unpack_wide
from limbeck.quantization.pyramids import PyramidGrid


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "kind"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_fp8_is_torchs_bit_for_bit(name, kind):
    grid = named(name)
    patterns = torch.arange(256, dtype=torch.uint8)
    theirs = patterns.view(kind).float()
    ours = grid.table
    used = ~torch.isnan(ours)
    assert torch.equal(ours[used], theirs[used])
    assert set(patterns[~used].tolist()) == {128, *patterns[~torch.isfinite(theirs)].tolist()}
    limit = theirs[torch.isfinite(theirs)].max()
    generator = torch.Generator().manual_seed(0)
    spread = (torch.rand(200_000, generator=generator) * 2 - 1) * 2.0 ** (
        torch.rand(200_000, generator=generator) * 26 - 18
    )
    middles = (theirs[used].sort().values[1:] + theirs[used].sort().values[:-1]) / 2
    x = torch.cat([spread, middles, theirs[used]]).clamp(-limit, limit)
    expected = x.to(kind)
    assert torch.equal(grid.table[grid.nearest(x).int()], expected.float())
    codes = grid.nearest(x)
    assert torch.equal(codes[expected.float() != 0], expected.view(torch.uint8)[expected.float() != 0])
    assert float(grid.table[grid.nearest(torch.tensor(1e9)).int()]) == limit


def test_small_floats_are_the_published_sets():
    assert MinifloatGrid(2, 1).rising[0].tolist()[7:] == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert named("fp6_e2m3").rising[0].max() == 7.5 and named("fp6_e3m2").rising[0].max() == 28.0
    assert len(named("fp6_e3m2").rising[0]) == 63 and named("fp8_e4m3").rising[0].max() == 448.0


def test_nf4_is_the_published_table():
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert torch.allclose(NormalFloatGrid(4).table, torch.tensor(published), atol=1e-6)


def test_log_and_power_levels():
    assert LogGrid(3).table.tolist() == [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]
    assert LogGrid(2, 2.0, signed=False).table.tolist() == [0.0, 0.25, 0.5, 1.0]
    x = numbers(5, 64)
    uniform = Quantizer(PowerGrid(4, 1.0), PerChannel(0), "minmax")
    integer = Quantizer(IntegerGrid(4), PerChannel(0))
    assert torch.allclose(uniform.decode(uniform.encode(x)), integer.decode(integer.encode(x)), atol=1e-6)
    transformed = PowerGrid(4, 0.5).table.abs().sqrt() * 7
    assert torch.allclose(transformed, transformed.round(), atol=1e-5)


def test_a_tie_goes_to_the_even_level():
    halves = torch.arange(-7, 8) / 2
    integers = LevelSet(tuple(range(-4, 5)))
    assert torch.equal(integers.table[integers.nearest(halves).int()], halves.round())
    ternary = TernaryGrid()
    found = ternary.table[ternary.nearest(torch.tensor([-0.5, 0.5, -0.51, 0.51, 0.0])).int()]
    assert found.tolist() == [0.0, 0.0, -1.0, 1.0, 0.0]
    assert BinaryGrid().nearest(torch.tensor([0.0, -0.0, -1e-30])).tolist() == [0, 0, 1]


def test_trits():
    codes = torch.tensor(list(itertools.product(range(3), repeat=5)))
    packed = pack_trits(codes)
    assert packed.shape == (243, 1) and sorted(packed.flatten().tolist()) == list(range(243))
    assert packed[-1] == 242 and pack_trits(torch.tensor([1, 0, 0, 0, 0])) == 1
    for length in (1, 4, 5, 6, 11):
        codes = torch.randint(0, 3, (2, 3, length), generator=torch.Generator().manual_seed(length))
        assert torch.equal(unpack_trits(pack_trits(codes), length).long(), codes)
    with pytest.raises(UsageError, match="6 trits take 2 bytes"):
        unpack_trits(torch.zeros(1, dtype=torch.uint8), 6)
    packed = Packed(torch.tensor([243], dtype=torch.uint8), torch.tensor(1.0), None, (3,))
    with pytest.raises(ArtifactError, match="no five trits"):
        Quantizer(TernaryGrid(), PerTensor(), "absmean").check(packed)


def test_wide_codes_are_laid_out_as_narrow_ones():
    narrow = torch.randint(0, 32, (3, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack_wide(narrow, 5), pack_bits(narrow, 5))
    wide = torch.randint(0, 2**62, (3, 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_wide(pack_wide(wide, 62), 62, 7), wide)


def test_ternary_scales_are_the_papers():
    x = numbers(4, 30)
    for row in x:
        mean, median = row.abs().mean(), row.abs().median()
        threshold = 0.7 * mean
        large = row.abs() > threshold
        expected = {
            "absmean": (row / mean).round().clamp(-1, 1) * mean,
            "absmedian": (row / median).round().clamp(-1, 1) * median,
            "twn": torch.where(large, row.sign(), 0) * row.abs()[large].mean(),
        }
        for method, values in expected.items():
            q = Quantizer(TernaryGrid(), PerTensor(), method)
            assert torch.allclose(q.decode(q.encode(row)), values, atol=1e-6), method
    q = Quantizer(TernaryGrid(), PerTensor(), "absmedian")
    mostly = torch.tensor([0.0, 0.0, 0.0, 4.0])
    assert q.decode(q.encode(mostly)).tolist() == [0.0, 0.0, 0.0, 1.0]  # a median of 0 would store nothing


def test_a_short_last_group_counts_what_is_there():
    x = numbers(2, 21)
    q = Quantizer(TernaryGrid(), PerGroup(16), "absmean")
    assert torch.allclose(q.encode(x).scale[:, 1], x[:, 16:].abs().mean(1))


def test_the_binary_scale_is_the_best():
    x = numbers(3, 50)
    q = Quantizer(BinaryGrid(), PerChannel(0), "absmean")
    found = q.decode(q.encode(x))
    assert torch.allclose(found, x.sign() * x.abs().mean(1, keepdim=True))
    best = Quantizer(BinaryGrid(), PerChannel(0), "mse")
    assert torch.allclose(best.encode(x).scale, x.abs().mean(1), atol=1e-5)


def test_the_scale_search_is_no_worse_than_any_candidate():
    x = numbers(3, 40, seed=2)
    grid = NormalFloatGrid(3)

    def onto(ratio):
        return grid.table[grid.nearest(ratio).int()]

    start = x.abs().amax(1, keepdim=True)
    found = search_scale(x, start, onto)
    error = (onto(x / found) * found - x).square().sum(1)
    for fraction in torch.linspace(1, 0.1, 60):
        other = start * fraction
        assert (error <= (onto(x / other) * other - x).square().sum(1) + 1e-6).all()
    levels = onto(x / found)
    fitted = fit_scale(x, levels)
    for i in range(3):
        expected = torch.linalg.lstsq(levels[i][:, None].double(), x[i][:, None].double()).solution
        assert fitted[i].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("grid", [BinarySum(2), BinarySum(3), BinarySum(2, low=0)], ids=str)
def test_sums_of_binaries_fall_in_error_and_are_the_nearest(grid):
    x = numbers(3, 40, seed=4)
    start = Quantizer(grid, PerChannel(0), "greedy")
    best = Quantizer(grid, PerChannel(0), "least_squares")
    errors = [(q.decode(q.encode(x)) - x).square().sum(1) for q in (start, best)]
    assert (errors[1] <= errors[0] + 1e-6).all() and errors[1].sum() < errors[0].sum()
    packed = best.encode(x)
    for row in range(3):
        values = [
            sum(a * b for a, b in zip(packed.scale[row].tolist(), bits))
            for bits in itertools.product((grid.low, 1), repeat=grid.terms)
        ]
        for given, found in zip(x[row].tolist(), best.decode(packed)[row].tolist()):
            nearest = min(values, key=lambda v: abs(v - given))
            assert found == pytest.approx(nearest, abs=1e-5)
    codes = best.codes(packed).long()
    again = alternate(x, packed.scale, grid.signs, rounds=1)
    solved = torch.linalg.lstsq(grid.signs[codes[0]].double(), x[0].double()[:, None]).solution[:, 0]
    assert torch.allclose(again[0].double(), solved, atol=1e-3)


def test_greedy_binaries_are_residual_signs():
    x = numbers(50)
    q = Quantizer(BinarySum(2), PerTensor(), "greedy")
    first = x.abs().mean()
    rest = x - first * x.sign()
    assert torch.allclose(q.encode(x).scale, torch.stack([first, rest.abs().mean()]), atol=1e-6)


def test_dual_binaries_start_on_the_uniform_grid_and_are_chosen_as_published():
    x = numbers(200, seed=6)
    packed = Quantizer(BinarySum(2, low=0), PerTensor(), "greedy").encode(x)
    a1, a2 = packed.scale.tolist()
    assert a1 == pytest.approx(-2 * a2)
    if a1 < 0:
        x, a1, a2 = -x, -a1, -a2
    grid = BinarySum(2, low=0)
    codes = grid.nearest(x, torch.tensor([a1, a2]), PerTensor())
    first = (x > (a1 + a2) / 2).float()
    second = (-(x - a1 * first - a2 / 2) > 0).float()
    assert torch.equal(grid.signs[codes.long()], torch.stack([first, second], 1))


def test_bits_are_counted_as_stored():
    assert Quantizer(TernaryGrid(), PerTensor(), "absmean").encode(numbers(4, 20)).codes.numel() == 16
    packed = Quantizer(FourthRootGrid(1), PerTensor(), "mean").encode(numbers(8, 16))
    assert packed.codes.numel() * 8 == 8 * 16
    assert named("kmeans", 8).bits == 8 and CodebookGrid(8, 4).bits == 2.0 and named("ternary").bits == 1.6


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogGrid(1), "bits=1"),
        (lambda: LogGrid(8, 16.0), "take a smaller base"),
        (lambda: LogGrid(4, 1.0), "base=1.0"),
        (lambda: PowerGrid(4, 0.0), "exponent=0.0"),
        (lambda: MinifloatGrid(5, 5), "1 \\+ exponent"),
        (lambda: MinifloatGrid(4, 3, "inf"), "special='inf'"),
        (lambda: NormalFloatGrid(9), "bits=9"),
        (lambda: LevelSet((1.0,)), "2 to 256"),
        (lambda: LevelSet((1.0, 0.0)), "rise"),
        (lambda: LevelSet(("a", "b")), "must be numbers"),
        (lambda: BinarySum(5), "terms=5"),
        (lambda: BinarySum(2, 1), "low=1"),
        (lambda: CodebookGrid(9), "index_bits=9"),
        (lambda: CodebookGrid(4, 0), "entries=0"),
        (lambda: LatticeGrid(1), "width=1"),
        (lambda: FourthRootGrid(0), "stages=0"),
        (lambda: PyramidGrid(1), "entries=1"),
        (lambda: PyramidGrid(32, 32), "at most 62"),
        (lambda: Quantizer(PyramidGrid(gains="beta"), PerRows(4)), "runs of rows differ"),
        (lambda: Quantizer(FourthRootGrid(), PerChannel(0), "mean"), "one set of scales per tensor"),
        (lambda: Quantizer(LatticeGrid(), PerGroup(12), "mse"), "multiple of 8"),
        (lambda: Quantizer(LatticeGrid(), PerChannel(1), "mse"), "axis 0"),
        (lambda: Quantizer(CodebookGrid(4, 4), PerGroup(4), "kmeans"), "multiple of 4"),
        (lambda: named("nf5"), "Did you mean"),
        (lambda: named("nf4", 3), "has 4 bits"),
        (lambda: named({"name": "nf4", "bits": 3}), "has the settings"),
        (lambda: named({"name": "power", "curve": 2}), "has the settings"),
    ],
)
def test_settings_that_cannot_be_right(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_shapes_that_cannot_be_stored():
    with pytest.raises(DataError, match="even number"):
        Quantizer(FourthRootGrid(), PerTensor(), "mean").encode(numbers(3, 4))
    with pytest.raises(DataError, match="two axes"):
        Quantizer(LatticeGrid(), PerChannel(0), "mse").encode(numbers(8))
