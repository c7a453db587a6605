"""Noise schedules that preserve variance, and the three things a denoiser may predict.

    x_t = a_t x_0 + s_t e,    a_t = sqrt(alpha_bar_t),  s_t = sqrt(1 - alpha_bar_t),  e ~ N(0, I)
    v_t = a_t e - s_t x_0

Time is a whole number, 0 (almost clean) to steps - 1 (almost noise), as in the papers this room carries.
Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 4; Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models", 2021, eq. 17 (cosine); Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models",
2022, appendix D (velocity).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError

KINDS = ("linear", "scaled_linear", "cosine")
PREDICTIONS = ("noise", "clean", "velocity")


@dataclass(frozen=True)
class NoiseSchedule:
    """How much signal is left at each time: alpha_bar_t = prod_{i <= t} (1 - beta_i).

    steps: number of times. kind: "linear" (beta from `first` to `last`), "scaled_linear" (sqrt(beta) linear), or "cosine"
    (alpha_bar_t = f(t + 1) / f(0), f(t) = cos^2(pi/2 (t / steps + 0.008) / 1.008), beta at most 0.999; first and last are not used).

    Raises UsageError for another kind, fewer than 2 steps, or betas outside 0 < first <= last < 1.
    """

    steps: int = 1000
    kind: str = "linear"
    first: float = 1e-4
    last: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 2:
            raise UsageError(f"NoiseSchedule: steps={self.steps!r} must be a whole number of at least 2")
        if self.kind not in KINDS:
            raise UsageError(f"NoiseSchedule: kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if not 0 < self.first <= self.last < 1:
            raise UsageError(f"NoiseSchedule: first={self.first!r}, last={self.last!r} must keep 0 < first <= last < 1")

    @functools.cached_property
    def alpha_bar(self) -> Tensor:
        """(steps,) float32 on the CPU: the share of the variance that is signal."""
        if self.kind == "cosine":
            at = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            f = torch.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        elif self.kind == "linear":
            beta = torch.linspace(self.first, self.last, self.steps, dtype=torch.float64)
        else:
            beta = torch.linspace(self.first**0.5, self.last**0.5, self.steps, dtype=torch.float64) ** 2
        return torch.cumprod(1 - beta, 0).float()

    def at(self, timestep: Tensor, like: Tensor) -> Tensor:
        """alpha_bar of the times (B,), of shape (B, 1, ...) to go with `like` (B, ...)."""
        found = self.alpha_bar.to(like.device)[timestep.to(like.device)]
        return found.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) e. Shapes: clean, noise (B, ...); timestep (B,)."""
        alpha_bar = self.at(timestep, clean)
        return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise

    def spaced(self, count: int) -> tuple[int, ...]:
        """`count` times from steps - 1 downwards, evenly spaced: round(steps k / count) - 1 for k = count .. 1."""
        if not 1 <= count <= self.steps:
            raise UsageError(f"cannot take {count} of {self.steps} times: give a number from 1 to {self.steps}")
        return tuple(round(self.steps * k / count) - 1 for k in range(count, 0, -1))


def to_clean(output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The clean estimate that a prediction stands for.

        noise:     (x_t - s e) / a          velocity:  a x_t - s v          clean: as it is

    Shapes: output, noisy (B, ...); alpha_bar broadcasts against them. Raises UsageError for another prediction.
    """
    _check(prediction)
    if prediction == "clean":
        return output
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return (noisy - s * output) / a if prediction == "noise" else a * noisy - s * output


def from_clean(clean: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """The prediction that a clean estimate stands for; the inverse of `to_clean`.

    noise:  (x_t - a x_0) / s               velocity:  (a x_t - x_0) / s    clean: as it is
    """
    _check(prediction)
    if prediction == "clean":
        return clean
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    return (noisy - a * clean) / s if prediction == "noise" else (a * noisy - clean) / s


def _check(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise UsageError(f"prediction={prediction!r} must be one of {', '.join(PREDICTIONS)}")
