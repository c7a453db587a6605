"""Denoisers: modules `f(noisy, timestep, condition=None) -> estimate of the clean data`, with a `schedule`.

Everything in this room speaks of clean estimates: a trained network, an analytic mixture and a guided pair are used alike.
condition (B,) holds class numbers; -1, or None for all, means unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.schedules import PREDICTIONS, NoiseSchedule, to_clean
from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.training.procedures import Losses, Procedure, State

INPUT = "pixel_values"  # the batch key that holds what is generated


class Denoiser(nn.Module):
    """A network that predicts noise, clean data or velocity, read as a clean estimate.

    network: `network(noisy, timestep, condition) -> tensor like noisy`. A one-step or few-step generator is a Denoiser too:
    called on pure noise at a late time, it answers with a sample.
    """

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, prediction: str = "velocity"):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise UsageError(f"Denoiser: prediction={prediction!r} must be one of {', '.join(PREDICTIONS)}")
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        output = self.network(noisy, timestep, condition)
        return to_clean(output, noisy, self.schedule.at(timestep, noisy), self.prediction)


class Guided(nn.Module):
    """Classifier-free guidance: D = D(x_t, none) + scale (D(x_t, c) - D(x_t, none)); the same line in noise and in clean data.

    scale 1 is the conditional denoiser itself. Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6, whose w
    is scale - 1.
    """

    def __init__(self, denoiser: nn.Module, scale: float):
        super().__init__()
        self.denoiser, self.scale, self.schedule = denoiser, float(scale), denoiser.schedule

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        conditional = self.denoiser(noisy, timestep, condition)
        if self.scale == 1 or condition is None:
            return conditional
        free = self.denoiser(noisy, timestep, torch.full_like(condition, -1))
        return free + self.scale * (conditional - free)


def denoising_loss(estimate: Tensor, clean: Tensor, alpha_bar: Tensor, weighting: str = "noise") -> Tensor:
    """The squared error of a prediction, from clean estimates: mean over all elements of w (x_hat - x_0)^2.

        noise: w = alpha_bar / (1 - alpha_bar)     velocity: w = 1 / (1 - alpha_bar)     clean: w = 1

    which is the squared error of the noise, the velocity or the clean data that the estimate stands for.
    Shapes: estimate, clean (B, ...); alpha_bar (B, 1, ...). Source: Salimans and Ho, 2022, section 4.
    """
    if weighting not in PREDICTIONS:
        raise UsageError(f"weighting={weighting!r} must be one of {', '.join(PREDICTIONS)}")
    weight = {"noise": alpha_bar / (1 - alpha_bar), "velocity": 1 / (1 - alpha_bar)}.get(weighting, 1.0)
    return (weight * (estimate - clean) ** 2).mean()


def random_times(count: int, low: int, high: int, device: torch.device | str = "cpu") -> Tensor:
    """`count` times, uniform in low .. high - 1, from the global generator."""
    return torch.randint(low, high, (count,), device=device)


class Denoising(Procedure):
    """Train a denoiser on clean data: E_{t, e} w_t |D(x_t, t, c) - x_0|^2 with t uniform.

    weighting: see `denoising_loss`. drop: the share of conditions that are replaced by -1, so that guidance has an unconditional
    side. The batch gives `pixel_values` and, when `conditional`, `labels`.
    """

    def __init__(self, denoiser: nn.Module, weighting: str = "velocity", conditional: bool = False, drop: float = 0.1):
        if not 0 <= drop <= 1:
            raise UsageError(f"Denoising: drop={drop!r} must be in [0, 1]")
        self.denoiser, self.weighting, self.conditional, self.drop = denoiser, weighting, conditional, drop
        self.modules = {"denoiser": denoiser}

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        clean = batch[INPUT]
        condition = batch["labels"] if self.conditional else None
        if condition is not None and self.drop:
            lost = torch.rand(len(clean), device=clean.device) < self.drop
            condition = torch.where(lost, -1, condition)
        value = noised_loss(self.denoiser, clean, condition, self.weighting)
        return {"main": Loss(value, {"denoising": value.detach()})}

    def model(self) -> None:
        return None

    def describe(self) -> Any:
        return {
            "procedure": type(self).__name__,
            "weighting": self.weighting,
            "conditional": self.conditional,
            "drop": self.drop,
        }


def noised_loss(denoiser: nn.Module, clean: Tensor, condition: Tensor | None, weighting: str) -> Tensor:
    """`denoising_loss` at one random time per example, over the whole schedule."""
    schedule = denoiser.schedule
    timestep = random_times(len(clean), 0, schedule.steps, clean.device)
    noisy = schedule.add_noise(clean, torch.randn_like(clean), timestep)
    estimate = denoiser(noisy, timestep, condition)
    return denoising_loss(estimate, clean, schedule.at(timestep, clean), weighting)
