"""Samplers: from noise to data with a denoiser in a given number of steps.

One step from signal share alpha_bar to alpha_bar' (larger), with the clean estimate x_hat and its noise e_hat = (x_t - a x_hat) / s:

    x' = a' x_hat + sqrt(1 - alpha_bar' - sigma^2) e_hat + sigma z,    z ~ N(0, I)
    sigma = eta sqrt((1 - alpha_bar') / (1 - alpha_bar)) sqrt(1 - alpha_bar / alpha_bar')

eta 0 is DDIM (deterministic), eta 1 ancestral sampling (DDPM). `generate` instead draws all noise anew at every step
(sigma^2 = 1 - alpha_bar'), as few-step generators are run.
Source: Song et al., "Denoising Diffusion Implicit Models", ICLR 2021, eq. 12 and 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.diffusion.schedules import from_clean
from limbeck.errors import UsageError


def sampler_step(
    clean: Tensor, noisy: Tensor, alpha_bar: Tensor, following: Tensor, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """x' of the formula above. Shapes: clean, noisy, noise (B, ...); alpha_bar and following (= alpha_bar') broadcast.

    noise is z; needed where eta is above 0.
    """
    sigma = eta * ((1 - following) / (1 - alpha_bar) * (1 - alpha_bar / following)).clamp(min=0).sqrt()
    direction = (1 - following - sigma**2).clamp(min=0).sqrt() * from_clean(clean, noisy, alpha_bar, "noise")
    out = following.sqrt() * clean + direction
    if eta == 0:
        return out
    if noise is None:
        raise UsageError(f"sampler_step with eta={eta} draws noise: give it")
    return out + sigma * noise


@torch.no_grad()
def sample(
    denoiser: nn.Module,
    noise: Tensor,
    steps: int,
    eta: float = 0.0,
    condition: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Run a denoiser from `noise` (B, ...) over `steps` evenly spaced times down to clean data (B, ...)."""
    if eta < 0:
        raise UsageError(f"eta={eta!r} must be at least 0")
    schedule, x = denoiser.schedule, noise
    times = schedule.spaced(steps)
    for time, after in zip(times, (*times[1:], None)):
        timestep = torch.full((len(x),), time, device=x.device)
        alpha_bar = schedule.at(timestep, x)
        following = torch.ones_like(alpha_bar) if after is None else schedule.at(torch.full_like(timestep, after), x)
        fresh = _normal(x, generator) if eta else None
        x = sampler_step(denoiser(x, timestep, condition), x, alpha_bar, following, eta, fresh)
    return x


def generate(
    generator: nn.Module,
    noise: Tensor,
    times: Sequence[int],
    condition: Tensor | None = None,
    draws: torch.Generator | None = None,
) -> Tensor:
    """Run a few-step generator: a clean estimate at times[0] from pure noise, noise added anew to times[1], an estimate, ...

    Shapes: noise (B, ...) -> samples (B, ...). One time is one step. Gradients flow when they are on.
    """
    clean, schedule = None, generator.schedule
    for time in times:
        timestep = torch.full((len(noise),), time, device=noise.device)
        x = noise if clean is None else schedule.add_noise(clean, _normal(noise, draws), timestep)
        clean = generator(x, timestep, condition)
    return clean


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
