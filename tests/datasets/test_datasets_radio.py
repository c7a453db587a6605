import math

import pytest
import torch

from limbeck.datasets.radio import MODULATIONS, modulated
from limbeck.errors import UsageError


def signals(kind, snr=80.0, seed=0, **how):
    made = modulated(kind, 200, 64, snr, torch.Generator().manual_seed(seed), **how)
    return torch.complex(made[:, 0], made[:, 1])


@pytest.mark.parametrize("kind", MODULATIONS)
def test_power_is_one_and_noise_is_as_loud_as_asked(kind):
    clean = signals(kind)
    assert clean.shape == (200, 64)
    torch.testing.assert_close(clean.abs().square().mean(1), torch.ones(200), atol=2e-3, rtol=0)
    for snr in (0.0, 10.0):
        noise = signals(kind, snr) - signals(kind, 200.0)
        assert 10 * math.log10(1 / float(noise.abs().square().mean())) == pytest.approx(snr, abs=0.15)


@pytest.mark.parametrize(("kind", "power"), [("bpsk", 2), ("qpsk", 4), ("8psk", 8)])
def test_phases_are_those_of_the_constellation(kind, power):
    raised = (
        signals(kind) ** power
    )  # all phases of the constellation fall together; what stays is phase and carrier offset
    steps = (raised[:, 1:] * raised[:, :-1].conj()).angle().abs()
    assert float(steps.max()) <= 2 * math.pi * 0.002 * power + 1e-2
    lower = signals(kind) ** (power // 2)
    assert float((lower[:, 1:] * lower[:, :-1].conj()).angle().abs().max()) > 1


def test_symbols_last_and_envelopes_tell_the_kinds_apart():
    turns = (signals("qpsk")[:, 1:] * signals("qpsk")[:, :-1].conj()).angle().abs() > 0.5
    assert 4 <= float(turns.sum(1).float().mean()) <= 8  # of 63 steps, 8 begin a symbol and three quarters of them turn
    assert float(signals("fm").abs().std()) < 1e-3 < 0.05 < float(signals("am").abs().std())
    levels = signals("16qam").abs()[0].mul(100).round().unique()
    assert len(levels) <= 6


def test_the_same_draws_give_the_same_signals_and_unknown_kinds_none():
    assert torch.equal(signals("am", 3.0), signals("am", 3.0))
    assert not torch.equal(signals("am", 3.0), signals("am", 3.0, seed=1))
    with pytest.raises(UsageError, match="unknown"):
        signals("ofdm")
    with pytest.raises(UsageError, match="at least 1"):
        signals("am", samples_per_symbol=0)
