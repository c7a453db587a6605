"""Grids, packing and ranges against naive loops and closed forms."""

import math

import pytest
import torch

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.calibration import Histogram
from limbeck.quantization.grids import (
    IntegerGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantizer,
    affine,
    dequantize,
    granularity_from_json,
    granularity_to_json,
    mse_range,
    parameter_shape,
    quantize,
)
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits

GRIDS = [
    IntegerGrid(bits, signed, symmetric)
    for bits in (2, 3, 4, 5, 6, 7, 8)
    for signed in (True, False)
    for symmetric in (True, False)
]
GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(4), PerGroup(5)]


def name(value):
    return str(value).replace("IntegerGrid", "").replace(" ", "")


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 13])
def test_packing_round_trips_and_lays_bits_end_to_end(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, packed_length(count, bits))
    assert torch.equal(unpack_bits(packed, bits, count).long(), codes)
    for row, stored in zip(codes.tolist(), packed.tolist()):
        stream = sum(code << (i * bits) for i, code in enumerate(row))
        assert stored == [(stream >> (8 * i)) & 255 for i in range(len(stored))]


def test_packing_refuses_other_widths_and_lengths():
    with pytest.raises(UsageError, match="bits=9"):
        pack_bits(torch.zeros(4), 9)
    with pytest.raises(UsageError, match="3 bytes a row, 2 were given"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 4, 5)


@pytest.mark.parametrize("grid", GRIDS, ids=name)
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=name)
def test_encode_equals_a_naive_loop_and_stays_within_half_a_step(grid, granularity):
    x = torch.randn(3, 11, generator=torch.Generator().manual_seed(1)) * 3 + 0.7
    quantizer = Quantizer(grid, granularity)
    packed = quantizer.encode(x)
    decoded = quantizer.decode(packed)
    groups: dict[tuple, list[tuple[int, int]]] = {}
    for i in range(3):
        for j in range(11):
            key = {PerTensor: (), PerChannel: (i,), PerGroup: (i, j // getattr(granularity, "size", 1))}[
                type(granularity)
            ]
            key = (j,) if granularity == PerChannel(1) else key
            groups.setdefault(key, []).append((i, j))
    assert packed.scale.shape == parameter_shape(x.shape, granularity)
    for key, members in groups.items():
        values = [x[m].item() for m in members]
        low, high = min(0.0, *values), max(0.0, *values)
        if grid.symmetric:
            middle = 0 if grid.signed else 2 ** (grid.bits - 1)
            scale, zero = max(-low, high) / (2 ** (grid.bits - 1) - 1), middle
        else:
            bottom = -(2 ** (grid.bits - 1)) if grid.signed else 0
            scale = (high - low) / (2**grid.bits - 1)
            zero = round(bottom - low / scale)
        assert packed.scale[key].item() == pytest.approx(scale, rel=1e-5)
        for member in members:
            expected = scale * (min(max(round(x[member].item() / scale) + zero, grid.low), grid.high) - zero)
            assert decoded[member].item() == pytest.approx(expected, abs=scale * 1e-3)
            assert abs(decoded[member].item() - x[member].item()) <= scale * 0.5001


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_every_code_round_trips(grid):
    codes = torch.arange(grid.low, grid.high + 1).to(torch.int8 if grid.signed else torch.uint8)
    scale, zero = torch.tensor(0.37), torch.tensor(grid.center if grid.symmetric else (grid.low + grid.high) // 3)
    quantizer = Quantizer(grid)
    assert len(codes) == 2**grid.bits - int(grid.symmetric)
    assert torch.equal(quantizer.codes(quantizer.pack(codes, scale, zero)), codes)
    values = dequantize(codes, scale, zero, PerTensor())
    assert torch.equal(quantize(values, scale, zero, grid, PerTensor()), codes)


@pytest.mark.parametrize("grid", GRIDS, ids=name)
def test_zero_is_exact_and_constants_survive(grid):
    for x in (torch.zeros(8), torch.tensor([0.0, 5.0]), torch.tensor([0.0, -2.0]), torch.tensor([0.0, 1e-38, -1e-38])):
        decoded = Quantizer(grid).decode(Quantizer(grid).encode(x))
        assert decoded[0] == 0 and torch.isfinite(decoded).all()


def test_bits_32_is_the_identity():
    x = torch.randn(4, 5)
    quantizer = Quantizer(IntegerGrid(32))
    assert torch.equal(quantizer.decode(quantizer.encode(x)), x)
    assert quantizer.encode(x).nbytes == 80


@pytest.mark.parametrize("scale_type", ["float32", "bfloat16", "float16"])
def test_nbytes_is_what_the_stored_tensors_take(scale_type):
    packed = Quantizer(IntegerGrid(4, False, False), PerGroup(32), scale_type=scale_type).encode(torch.randn(6, 70))
    scales = 6 * math.ceil(70 / 32)
    assert packed.nbytes == 6 * 35 + scales * (4 if scale_type == "float32" else 2) + scales
    assert packed.scale.element_size() == (4 if scale_type == "float32" else 2)


@pytest.mark.parametrize("scale_type", ["bfloat16", "float16"])
def test_coarse_scales_still_hold_the_range(scale_type):
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(IntegerGrid(4), PerGroup(8), scale_type=scale_type)
    packed = quantizer.encode(x)
    error = (quantizer.decode(packed) - x).abs()
    assert (error <= packed.scale.float().repeat_interleave(8, -1) * 0.5001).all()


def test_mse_range_is_the_best_of_its_candidates_and_clips_an_outlier():
    x = torch.cat([torch.randn(2, 400, generator=torch.Generator().manual_seed(0)), torch.full((2, 1), 12.0)], 1)
    grid = IntegerGrid(4)

    def error(high):
        scale = high / 7
        return ((torch.round(x[0] / scale).clamp(-7, 7) * scale - x[0]) ** 2).sum().item()

    low, high = mse_range(x, grid, PerChannel(0), candidates=61, smallest=0.4)
    tried = [12.0 * (1 - 0.6 * i / 60) for i in range(61)]
    extent = max(-low[0].item(), high[0].item())
    assert error(extent) == pytest.approx(min(map(error, tried)), rel=1e-4)
    assert extent < 12.0
    plain = Quantizer(grid, PerChannel(0))
    best = Quantizer(grid, PerChannel(0), "mse")
    assert (best.decode(best.encode(x)) - x).square().sum() < (plain.decode(plain.encode(x)) - x).square().sum()


def test_affine_on_the_largest_numbers():
    for grid in (IntegerGrid(8), IntegerGrid(8, False, False)):
        scale, zero = affine(torch.tensor(-3e38), torch.tensor(3e38), grid)
        assert torch.isfinite(scale) and grid.low <= zero <= grid.high


@pytest.mark.parametrize("bits", [0, 1, 9, 16, 4.0, True, "8"])
def test_other_widths_are_refused(bits):
    with pytest.raises(UsageError, match="2 to 8 bits"):
        IntegerGrid(bits)


def test_bad_settings_and_tensors_are_refused():
    with pytest.raises(UsageError, match="at least 2"):
        PerGroup(1)
    with pytest.raises(UsageError, match="'minmax' and 'mse'"):
        Quantizer(method="max")
    with pytest.raises(UsageError, match="scale_type"):
        Quantizer(scale_type="int8")
    for bad in (torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.zeros(0)):
        with pytest.raises(DataError, match="NaN or infinity"):
            Quantizer().encode(bad)


def test_granularity_as_json():
    for granularity in GRANULARITIES:
        assert granularity_from_json(granularity_to_json(granularity)) == granularity
    for bad in ("row", {"group": 2, "x": 1}, {"group": "4"}, None, []):
        with pytest.raises(ArtifactError, match="granularity"):
            granularity_from_json(bad)


def test_histogram_counts_what_was_seen_whatever_the_order():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1000, generator=generator) * scale for scale in (0.1, 5.0, 1.0)]
    x = torch.cat(parts)
    for order in ((0, 1, 2), (1, 0, 2)):
        histogram = Histogram(512)
        for i in order:
            histogram.update(parts[i])
        assert (histogram.low, histogram.high) == (x.min().item(), x.max().item())
        assert histogram.counts.sum() == 3000
        step = 2 * histogram.width / 512
        mean = (histogram.counts * histogram.centers).sum() / 3000
        assert mean.item() == pytest.approx(x.mean().item(), abs=step)
        second = (histogram.counts * histogram.centers**2).sum() / 3000
        assert second.item() == pytest.approx(x.square().mean().item(), rel=0.02)
        low, high = histogram.percentile(99.0)
        assert 0.008 <= (x > high).float().mean() <= 0.0101
        assert 0.008 <= (x < low).float().mean() <= 0.0101


def test_least_error_range_beats_the_extremes_and_keeps_a_uniform_distribution_whole():
    grid = IntegerGrid(4, signed=False, symmetric=False)
    x = torch.cat([torch.randn(20000, generator=torch.Generator().manual_seed(0)).abs(), torch.tensor([30.0])])
    histogram = Histogram()
    histogram.update(x)

    def error(low, high):
        scale, zero = affine(torch.tensor(low), torch.tensor(high), grid)
        return (dequantize(quantize(x, scale, zero, grid, PerTensor()), scale, zero, PerTensor()) - x).square().sum()

    low, high = histogram.least_error(grid)
    assert low == 0.0 and high < 30.0 and error(low, high) < 0.5 * error(0.0, 30.0)
    uniform = Histogram()
    uniform.update(torch.linspace(-1, 3, 10001))
    low, high = uniform.least_error(IntegerGrid(8, False, False))
    assert low == pytest.approx(-1, abs=0.05) and high == pytest.approx(3, abs=0.1)


def test_a_histogram_refuses_what_is_not_finite():
    with pytest.raises(DataError, match="NaN or infinite"):
        Histogram().update(torch.tensor([0.0, float("nan")]))
