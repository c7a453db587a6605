"""Fixed point: the grid against whole-number arithmetic, stochastic rounding against its mean, and what it saves training from."""

import math
from fractions import Fraction

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.quantization import FixedPointGrid, PerChannel, PerTensor, Quantizer
from limbeck.quantization.fixed_point import fixed_point, whole_bits


def by_hand(x, word, fraction):
    """Python's round is to even as well."""
    code = round(Fraction(x) * Fraction(2) ** fraction)
    code = max(-(2 ** (word - 1)), min(2 ** (word - 1) - 1, code))
    return float(code / Fraction(2) ** fraction)


@pytest.mark.parametrize(("word", "fraction"), [(8, 6), (4, 0), (3, -1), (12, 14)])
def test_values_by_exact_arithmetic(word, fraction):
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)) * 2.0 ** (word - 2 - fraction)
    expected = [by_hand(value, word, fraction) for value in x.tolist()]
    assert fixed_point(x, word, fraction).tolist() == expected
    halves = (torch.arange(-5, 6) + 0.5) * 2.0**-fraction
    assert fixed_point(halves, word, fraction).tolist() == [by_hand(v, word, fraction) for v in halves.tolist()]


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
    x = torch.tensor([0.3, -0.3, 1.0, 0.01])
    noise = torch.rand(20000, 4, generator=torch.Generator().manual_seed(1))
    found = fixed_point(x.expand(20000, 4), 6, 2, noise)
    assert set(found[:, 0].tolist()) == {0.25, 0.5} and set(found[:, 1].tolist()) == {-0.25, -0.5}
    assert (found[:, 2] == 1.0).all()
    assert torch.allclose(found.mean(0), x, atol=0.005)
    assert fixed_point(torch.tensor([99.0, -99.0]), 6, 2, torch.zeros(2)).tolist() == [7.75, -8.0]


def test_the_shortest_word_clips_nothing_and_one_bit_less_does():
    for x, fraction in ((torch.tensor([0.9, -0.2]), 3), (torch.tensor([-1.0, 0.5]), 4), (torch.tensor([5.2]), 0)):
        word = whole_bits(x, fraction)
        rounded = torch.round(x * 2.0**fraction) * 2.0**-fraction
        assert torch.equal(fixed_point(x, word, fraction), rounded)
        assert word == 2 or not torch.equal(fixed_point(x, word - 1, fraction), rounded)
    assert whole_bits(torch.tensor([-1.0, 0.5]), 4) == 5  # -16..15
    assert whole_bits(torch.tensor([1.0]), 4) == 6 and whole_bits(torch.zeros(3), 4) == 2


@pytest.mark.parametrize("word", [2, 5, 8, 12, 16])
def test_the_grid_is_fixed_point_with_the_least_scale_that_clips_nothing(word):
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(word))
    q = Quantizer(FixedPointGrid(word), PerChannel(0), "minmax")
    packed = q.encode(x)
    for row, scale in zip(x, packed.scale.tolist()):
        exponent = math.log2(scale)
        assert exponent == int(exponent)
        high, low = 2 ** (word - 1) - 1, -(2 ** (word - 1))
        assert row.max() <= high * scale and row.min() >= low * scale
        assert row.max() > high * scale / 2 or row.min() < low * scale / 2
    by_row = torch.stack([fixed_point(r, word, -int(math.log2(s))) for r, s in zip(x, packed.scale.tolist())])
    assert torch.equal(q.decode(packed), by_row)
    best = Quantizer(FixedPointGrid(word), PerChannel(0), "mse")
    assert (best.decode(best.encode(x)) - x).square().sum() <= (by_row - x).square().sum()


def test_the_search_takes_the_best_of_five_scales():
    x = torch.cat([torch.randn(400, generator=torch.Generator().manual_seed(0)) * 0.1, torch.tensor([0.31])])
    q = Quantizer(FixedPointGrid(3), PerTensor(), "mse")
    found = float((q.decode(q.encode(x)) - x).square().sum())
    widest = float(Quantizer(FixedPointGrid(3), PerTensor()).encode(x).scale)
    errors = [float((fixed_point(x, 3, -int(math.log2(widest)) + h) - x).square().sum()) for h in range(5)]
    assert found == pytest.approx(min(errors)) and errors.index(min(errors)) > 0


def test_every_code_comes_back():
    for word in (2, 6, 11):
        q = Quantizer(FixedPointGrid(word), PerTensor())
        codes = torch.arange(-(2 ** (word - 1)), 2 ** (word - 1))
        packed = q.project(codes / 4, q.encode(codes / 4))
        assert torch.equal(q.grid.codes(packed).long(), codes) and float(packed.scale) == 0.25
        if word < 8:
            assert torch.equal(q.grid.whole_numbers(packed).long(), codes)


@pytest.mark.parametrize("word", [1, 17, 4.0, True])
def test_other_words_are_refused(word):
    with pytest.raises(UsageError, match="word"):
        FixedPointGrid(word)
