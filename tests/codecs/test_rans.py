"""The entropy coder: what goes in comes out, at the length that the frequencies say."""

import math

import numpy as np
import pytest

from limbeck.codecs import rans
from limbeck.errors import ArtifactError, UsageError


@pytest.mark.parametrize("precision", [8, 16, 24, 28])
def test_symbols_come_back_at_their_length(precision):
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.full(10, 0.3), 500)
    table = rans.frequencies(p, precision)
    assert (table.sum(-1) == 1 << precision).all() and table.min() >= 1
    symbols = np.array([draw.choice(10, p=row) for row in p])
    begins, rows = rans.starts(table), np.arange(500)
    sizes = table[rows, symbols]
    data = rans.encode(begins[rows, symbols].tolist(), sizes.tolist(), precision)
    coder = rans.Decoder(data, precision)
    assert [coder.pop(row) for row in begins] == symbols.tolist()
    coder.finish()
    bits = sum(precision - math.log2(size) for size in sizes)
    assert bits <= 8 * len(data) <= bits * 1.001 + 48


def test_certain_symbols_cost_nothing_and_rare_ones_their_share():
    table = rans.frequencies(np.tile([1.0, 0.0], (1000, 1)))
    begins = rans.starts(table)
    assert len(rans.encode(begins[:, 0].tolist(), table[:, 0].tolist())) <= 6
    data = rans.encode(begins[:, 1].tolist(), table[:, 1].tolist())
    assert len(data) == pytest.approx(1000 * 24 / 8, abs=8)


def test_frequencies_are_near_the_probabilities():
    p = np.random.default_rng(1).dirichlet(np.ones(256), 20)
    assert np.abs(rans.frequencies(p) / 2**24 - p).max() < 256 * 2**-24
    with pytest.raises(UsageError, match="precision"):
        rans.frequencies(p, 30)
    with pytest.raises(UsageError, match="sum to 1"):
        rans.frequencies(np.array([[3.0, 3.0]]))


def test_sealed_numbers_and_damage():
    sealed = rans.seal(b"ab", (0, 127, 128, 1 << 40), b"payload")
    assert rans.unseal(b"ab", 4, sealed) == ([0, 127, 128, 1 << 40], b"payload")
    for bad in (sealed[:-1], sealed[1:], b"ab", sealed.replace(b"pay", b"pby")):
        with pytest.raises(ArtifactError):
            rans.unseal(b"ab", 4, bad)
    with pytest.raises(ArtifactError, match="kind"):
        rans.unseal(b"xy", 4, sealed)
    with pytest.raises(ArtifactError, match="header"):
        rans.unseal(b"ab", 20, sealed)
    with pytest.raises(ArtifactError, match="cut off"):
        rans.Decoder(b"1234")
