"""Gaussian mixtures under noise: densities, scores and the perfect denoiser in closed form, a teacher that costs nothing.

A component N(m_k, s_k^2 I) of weight w_k becomes N(a m_k, (a^2 s_k^2 + 1 - a^2) I) at signal share alpha_bar = a^2, so that

    log p_t(x) = logsumexp_k [ log w_k - |x - a m_k|^2 / (2 c_k) - D/2 log(2 pi c_k) ],      c_k = alpha_bar s_k^2 + 1 - alpha_bar
    E[x_0 | x_t = x] = sum_k r_k(x) ( m_k + a s_k^2 / c_k (x - a m_k) ),                     r_k = posterior of component k
    score = (a E[x_0 | x_t] - x_t) / (1 - alpha_bar)                                         (Tweedie)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.diffusion.schedules import NoiseSchedule
from limbeck.errors import UsageError


@dataclass(frozen=True)
class GaussianMixture:
    """Isotropic components. means: K points of D numbers. deviation: s, the same for all. weights: K positive numbers, equal by default;
    normalized here. labels: the class of each component, for conditional denoising; by default each is its own class.

    Raises UsageError for sizes that do not fit, a deviation or a weight that is not positive.
    """

    means: tuple[tuple[float, ...], ...]
    deviation: float
    weights: tuple[float, ...] | None = None
    labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.means or len({len(mean) for mean in self.means}) != 1:
            raise UsageError("GaussianMixture: means must be at least one point, all of the same dimension")
        if self.deviation <= 0:
            raise UsageError(f"GaussianMixture: deviation={self.deviation!r} must be above 0")
        for field in ("weights", "labels"):
            value = getattr(self, field)
            if value is not None and len(value) != len(self.means):
                raise UsageError(f"GaussianMixture: {field} has {len(value)} entries for {len(self.means)} means")
        if self.weights is not None and min(self.weights) <= 0:
            raise UsageError(f"GaussianMixture: weights={self.weights!r} must all be above 0")

    @property
    def centres(self) -> Tensor:
        """(K, D) float32."""
        return torch.tensor(self.means)

    @property
    def shares(self) -> Tensor:
        """(K,) weights that sum to 1."""
        weights = torch.tensor(self.weights or (1.0,) * len(self.means))
        return weights / weights.sum()

    @property
    def classes(self) -> Tensor:
        """(K,) the class of each component."""
        return torch.tensor(self.labels if self.labels is not None else range(len(self.means)))

    def sample(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Points (count, D) and their classes (count,)."""
        component = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        noise = torch.randn(count, len(self.means[0]), generator=generator)
        return self.centres[component] + self.deviation * noise, self.classes[component]

    def log_components(self, noisy: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """log w_k N(x; a m_k, c_k I) of every component, -inf outside the condition's class; weights are renormalized inside it.

        Shapes: noisy (B, D), alpha_bar (B, 1), condition (B,) or None; returns (B, K).
        """
        centres, log_shares = self.centres.to(noisy), self.shares.to(noisy).log()
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar  # (B, 1)
        distance = (noisy[:, None] - alpha_bar.sqrt()[..., None] * centres).square().sum(-1)
        if condition is not None:
            fits = (self.classes.to(condition.device) == condition[:, None]) | (condition[:, None] < 0)
            log_shares = log_shares.expand(len(noisy), -1).masked_fill(~fits, -math.inf).log_softmax(-1)
        return log_shares - distance / (2 * variance) - noisy.shape[-1] / 2 * (2 * math.pi * variance).log()

    def log_density(self, noisy: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """log p_t(x | condition): (B,). alpha_bar (B, 1); 1 is the mixture itself."""
        return self.log_components(noisy, alpha_bar, condition).logsumexp(-1)

    def denoise(self, noisy: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """E[x_0 | x_t]: (B, D)."""
        centres, a = self.centres.to(noisy), alpha_bar.sqrt()
        posterior = self.log_components(noisy, alpha_bar, condition).softmax(-1)
        mean = posterior @ centres
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        return mean + a * self.deviation**2 / variance * (noisy - a * mean)

    def score(self, noisy: Tensor, alpha_bar: Tensor, condition: Tensor | None = None) -> Tensor:
        """The gradient of `log_density` with respect to x: (B, D); for alpha_bar below 1."""
        return (alpha_bar.sqrt() * self.denoise(noisy, alpha_bar, condition) - noisy) / (1 - alpha_bar)


class MixtureDenoiser(nn.Module):
    """The exact denoiser of a mixture under a schedule; see `limbeck.diffusion.denoisers` for the contract."""

    def __init__(self, mixture: GaussianMixture, schedule: NoiseSchedule):
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.mixture.denoise(noisy, self.schedule.at(timestep, noisy), condition)


def ring(modes: int = 8, radius: float = 2.0, deviation: float = 0.1) -> GaussianMixture:
    """`modes` equal Gaussians on a circle, each its own class: the usual test of mode collapse."""
    angles = [2 * math.pi * k / modes for k in range(modes)]
    return GaussianMixture(tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles), deviation)


def grid(side: int = 5, spacing: float = 1.0, deviation: float = 0.1) -> GaussianMixture:
    """side x side equal Gaussians on a square lattice around 0, each its own class."""
    places = [spacing * (k - (side - 1) / 2) for k in range(side)]
    return GaussianMixture(tuple((x, y) for x in places for y in places), deviation)
