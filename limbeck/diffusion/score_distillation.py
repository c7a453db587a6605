"""Score distillation: optimize images (particles) directly so that a diffusion model finds them likely, with a pluggable fake score.

    gradient = E_{t, e} [ w_t (e_real(x_t) - e_fake(x_t)) dx/dtheta ],   x = g(theta),  x_t = a_t x + s_t e

The fake score says what the particles' own noised distribution looks like. Three kinds:

    none                  the Dirac at each particle: e_fake = e, score distillation sampling (SDS); no spread, modes only
    a trained denoiser    learned on the particles as they move: variational score distillation (VSD); the particles become samples
    ParticleDenoiser      the exact denoiser of the particle set; with one particle it is the Dirac

In clean estimates e_real - e_fake = (a_t / s_t) (D_fake(x_t) - D_real(x_t)), and the Dirac's estimate is x itself.
Sources: Poole et al., "DreamFusion", ICLR 2023, eq. 3 (SDS); Wang et al., "ProlificDreamer", NeurIPS 2023, eq. 7 and 9 (VSD).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.diffusion.denoisers import noised_loss
from limbeck.diffusion.schedules import NoiseSchedule
from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.training.procedures import Losses, Procedure, State


@dataclass(frozen=True)
class TimeWindow:
    """Times are uniform in [low, high] of the schedule, and in [low, late] once `switch` of the run is over.

    Defaults are the paper's: 2 to 98 %, then 2 to 50 % (after 5,000 of 25,000 steps). switch 1 never narrows.
    """

    low: float = 0.02
    high: float = 0.98
    late: float = 0.5
    switch: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.low < min(self.late, self.high) <= max(self.late, self.high) <= 1:
            raise UsageError(
                f"TimeWindow: low={self.low}, high={self.high}, late={self.late} must lie in [0, 1], low first"
            )
        if not 0 <= self.switch <= 1:
            raise UsageError(f"TimeWindow: switch={self.switch!r} must be in [0, 1]")

    def draw(self, count: int, steps: int, progress: float, device: torch.device | str = "cpu") -> Tensor:
        """`count` times of a schedule of `steps`, at `progress` (0 to 1) of the run."""
        high = self.high if progress < self.switch else self.late
        return torch.randint(int(self.low * steps), min(int(high * steps) + 1, steps), (count,), device=device)


class Particles(nn.Module):
    """`count` canvases of `shape`, drawn from N(0, scale^2). conditions (count,): the prompt of each, as class numbers."""

    def __init__(self, count: int, shape: tuple[int, ...], scale: float = 1.0, conditions: Tensor | None = None):
        super().__init__()
        if count < 1 or (conditions is not None and tuple(conditions.shape) != (count,)):
            raise UsageError(f"Particles: count={count} must be at least 1, with as many conditions or none")
        self.canvas = nn.Parameter(scale * torch.randn(count, *shape))
        self.register_buffer("conditions", conditions)

    def forward(self) -> Tensor:
        return self.canvas


class ParticleDenoiser(nn.Module):
    """The exact denoiser of the particle set's own distribution, sum_j Dirac(theta_j) / N.

    D(x_t) = sum_j softmax_j(-|x_t - a theta_j|^2 / (2 s^2)) theta_j, over the particles of the same condition where one is given.
    """

    def __init__(self, particles: Particles, schedule: NoiseSchedule):
        super().__init__()
        self._particles, self.schedule = (particles,), schedule  # in a tuple: they are not parameters of the fake score

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        (particles,) = self._particles
        points, alpha_bar = particles().flatten(1), self.schedule.at(timestep, noisy.flatten(1))
        squared = (noisy.flatten(1)[:, None] - alpha_bar.sqrt()[..., None] * points).square().sum(-1)
        logits = -squared / (2 * (1 - alpha_bar))
        if condition is not None and particles.conditions is not None:
            logits = logits.masked_fill(particles.conditions != condition[:, None], -torch.inf)
        return (logits.softmax(-1) @ points).reshape(noisy.shape)


def distillation_direction(real: Tensor, fake: Tensor, alpha_bar: Tensor) -> Tensor:
    """w (e_real - e_fake) = w (a / s) (fake - real) with w = 1 - alpha_bar = s^2, that is a s (fake - real).

    Shapes: the clean estimates real and fake (B, ...), alpha_bar (B, 1, ...); returns (B, ...). The weight is that of the authors' code, and so is the division by N in `ScoreDistillation`; they draw one time per batch.
    """
    return (alpha_bar * (1 - alpha_bar)).sqrt() * (fake - real)


class ScoreDistillation(Procedure):
    """Move particles along `distillation_direction`; train the fake score on them in turn, one step each.

    particles: a `Particles`. teacher: a denoiser, guided (`Guided`) where the method guides. fake_score: None (SDS), a denoiser to
    train (VSD; a copy of the teacher's network to begin with), or one that is only read, with `learns=False`. render: g, any
    differentiable function of the canvases. times: see `TimeWindow`. drop: the share of conditions withheld from the fake score
    while it learns. weighting: of its denoising loss. fake_rate: factor on the learning rate of the fake score.

    The loss of the particles is sum(sg(direction) x) / N: its value means nothing, its gradient is the method's. The batch only says
    that a step happens: particles learn from the teacher, not from data.
    Deviation: the fake score is a full copy where the paper trains low-rank adapters of the teacher with a camera embedding.
    """

    def __init__(
        self,
        particles: Particles,
        teacher: nn.Module,
        fake_score: nn.Module | None = None,
        *,
        learns: bool = True,
        render: Callable[[Tensor], Tensor] | None = None,
        times: TimeWindow | None = None,
        drop: float = 0.1,
        weighting: str = "velocity",
        fake_rate: float = 1.0,
    ):
        if fake_score is not None and fake_score is teacher:
            raise UsageError("ScoreDistillation: teacher and fake_score are one module: copy it")
        if not 0 <= drop <= 1:
            raise UsageError(f"ScoreDistillation: drop={drop!r} must be in [0, 1]")
        self.particles, self.teacher, self.fake_score = particles, teacher, fake_score
        self.learns = learns and fake_score is not None
        self.render, self.times = render or _identity, times or TimeWindow()
        self.drop, self.weighting, self.fake_rate = drop, weighting, fake_rate
        if self.learns and not any(parameter.requires_grad for parameter in fake_score.parameters()):
            raise UsageError(
                "ScoreDistillation: the fake score has nothing to train; give learns=False to only read it"
            )
        self.modules = {"particles": particles}
        if self.learns:
            self.modules["fake_score"] = fake_score

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {name: (name,) for name in self.modules}

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"fake_score": self.fake_rate}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.teacher.to(device).eval().requires_grad_(False)
        if self.fake_score is not None and not self.learns:
            self.fake_score.to(device).eval()

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        samples, condition = self.render(self.particles()), self.particles.conditions
        direction = self.direction(samples.detach(), condition, state.step / state.steps)
        value = (direction * samples).sum() / len(samples)
        losses = {"particles": Loss(value, {"direction": direction.square().mean().sqrt()})}
        if self.learns:
            shown = condition
            if condition is not None and self.drop:
                lost = torch.rand(len(condition), device=condition.device) < self.drop
                shown = torch.where(lost, -1, condition)
            denoising = noised_loss(self.fake_score, samples.detach(), shown, self.weighting)
            losses["fake_score"] = Loss(denoising, {"denoising": denoising.detach()})
        return losses

    @torch.no_grad()
    def direction(self, samples: Tensor, condition: Tensor | None, progress: float) -> Tensor:
        """The gradient with respect to the samples (N, ...), at one time and one noise for each."""
        schedule = self.teacher.schedule
        timestep = self.times.draw(len(samples), schedule.steps, progress, samples.device)
        noisy = schedule.add_noise(samples, torch.randn_like(samples), timestep)
        real = self.teacher(noisy, timestep, condition)
        fake = samples if self.fake_score is None else self.fake_score(noisy, timestep, condition)
        return distillation_direction(real, fake, schedule.at(timestep, samples))

    def model(self) -> None:
        return None

    def describe(self) -> Any:
        times = [self.times.low, self.times.high, self.times.late, self.times.switch]
        fake = type(self.fake_score).__name__ if self.fake_score is not None else None
        settings = {"learns": self.learns, "drop": self.drop, "weighting": self.weighting, "fake_rate": self.fake_rate}
        return {"procedure": type(self).__name__, "times": times, "fake_score": fake, **settings}


def _identity(canvas: Tensor) -> Tensor:
    return canvas
