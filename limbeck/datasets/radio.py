"""Synthetic radio signals: digital and analogue modulations in complex baseband, with noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.errors import UsageError

PHASES = {"bpsk": 2, "qpsk": 4, "8psk": 8}
MODULATIONS = (*PHASES, "16qam", "am", "fm")


def _symbols(kind: str, shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    """Points of a constellation with mean power 1, complex."""
    if kind == "16qam":
        levels = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(10)
        real, imaginary = (levels[torch.randint(0, 4, shape, generator=draws)] for _ in range(2))
        return torch.complex(real, imaginary)
    phases = PHASES[kind]
    angle = torch.randint(0, phases, shape, generator=draws) * (2 * math.pi / phases) + math.pi / phases * (phases > 2)
    return torch.polar(torch.ones(shape), angle.float())


def _message(count: int, length: int, draws: torch.Generator, smooth: int = 9) -> Tensor:
    """A slow random message (count, length) with largest magnitude 1."""
    noise = torch.randn(count, 1, length + smooth - 1, generator=draws)
    slow = torch.nn.functional.avg_pool1d(noise, smooth, 1).squeeze(1)
    return slow / slow.abs().amax(1, keepdim=True)


def modulated(
    kind: str, count: int, length: int, snr: Tensor | float, draws: torch.Generator, samples_per_symbol: int = 8
) -> Tensor:
    """`count` received signals of one modulation: in-phase and quadrature (count, 2, length).

    kind: of `MODULATIONS`. Digital ones hold each symbol for `samples_per_symbol` samples, with a random start in the first; "am" is
    1 + 0.5 m(t), "fm" the phase 0.5 sum m, m a smoothed random message. Every signal has a random phase, a carrier offset of up to 0.2 %
    of the sampling rate, mean power 1, and white noise at `snr` decibels (a number or one per signal). Everything is drawn from `draws`.
    """
    if kind not in MODULATIONS:
        raise UsageError(f"modulation {kind!r} is unknown: {', '.join(MODULATIONS)}")
    if min(count, length, samples_per_symbol) < 1:
        raise UsageError(f"count={count}, length={length}, samples_per_symbol={samples_per_symbol} must be at least 1")
    if kind == "am":
        message = 1 + 0.5 * _message(count, length, draws)
        clean = torch.complex(message, torch.zeros_like(message))
    elif kind == "fm":
        clean = torch.polar(torch.ones(count, length), 0.5 * _message(count, length, draws).cumsum(1))
    else:
        whole = _symbols(kind, (count, length // samples_per_symbol + 2), draws).repeat_interleave(
            samples_per_symbol, 1
        )
        start = torch.randint(0, samples_per_symbol, (count, 1), generator=draws)
        clean = whole.gather(1, start + torch.arange(length))
    turn, offset = torch.rand(2, count, 1, generator=draws)
    clean = clean * torch.polar(torch.ones(()), 2 * math.pi * (turn + 0.002 * (2 * offset - 1) * torch.arange(length)))
    clean = clean / clean.abs().square().mean(1, keepdim=True).sqrt()
    deviation = (10 ** (-torch.as_tensor(snr).float().reshape(-1, 1) / 20) / math.sqrt(2)).expand(count, 1)
    noise = torch.randn(2, count, length, generator=draws)
    return torch.stack([clean.real + deviation * noise[0], clean.imag + deviation * noise[1]], 1)
