"""Distribution matching distillation: a one- or few-step generator that matches its teacher in distribution.

    x = G(z);   x_t = a_t x + s_t e;   direction = (D_fake(x_t) - D_real(x_t)) / mean |x - D_real(x_t)|

D_real is the frozen teacher, D_fake a denoiser trained online on the generator's own samples: their difference is the gradient of
KL(generator || teacher) under noise. Sources: Yin et al., "One-step Diffusion with Distribution Matching Distillation", 2024, eq. 7
and 8; Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis", 2024 (DMD2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.diffusion.denoisers import INPUT, noised_loss, random_times
from limbeck.diffusion.samplers import generate
from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.signals import Tap
from limbeck.training.procedures import Losses, Procedure, State

SIMULATED, DATA = "simulated", "data"


def matching_direction(clean: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / mean |clean - real|, the mean over everything but the batch; 0 where that mean is 0.

    Shapes: the samples `clean` and the clean estimates `real` and `fake` of their noised copies, all (B, ...); returns (B, ...).
    Source: DMD, eq. 7 and 8 in terms of clean estimates. Agrees with the authors' code (their nan_to_num also caps infinities).
    """
    scale = (clean - real).abs().flatten(1).mean(1).reshape(-1, *[1] * (clean.dim() - 1))
    return torch.where(scale > 0, (fake - real) / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0)


def along(samples: Tensor, direction: Tensor) -> Tensor:
    """A scalar whose gradient with respect to `samples` is `direction` / samples.numel(): 1/2 mean (x - sg(x - direction))^2."""
    return 0.5 * F.mse_loss(samples, (samples - direction).detach())


def classifier_loss(fake: Tensor, real: Tensor) -> Tensor:
    """mean softplus(fake) + mean softplus(-real): the discriminator's side of the non-saturating game. Logits of any shape."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def realism_loss(fake: Tensor) -> Tensor:
    """mean softplus(-fake): the generator's side."""
    return F.softplus(-fake).mean()


def discriminator_head(features: int, width: int = 64) -> nn.Sequential:
    """Features (B, ...) with `features` numbers each -> one logit (B, 1)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, 1))


class DistributionMatching(Procedure):
    """Distil `teacher` into `generator` with an online fake score, two time scales, a discriminator head and simulated inputs.

    Every step: the fake score (and the head) learns from samples of the generator as it stands, with the loss
        L_fake = denoising(D_fake, sg(x)) + classifier_weight (mean softplus(h(x_t')) + mean softplus(-h(y_t')))
    Every `critic_updates`-th step the generator moves too:
        L_gen = matching_weight 1/2 mean (x - sg(x - direction))^2 + realism_weight mean softplus(-h(x_t'))
    with y from the data, t uniform in `window` of the schedule, t' uniform over all of it, h the head on the fake score's features.

    generator, fake_score: denoisers, usually copies of the teacher; teacher: any denoiser (guided, analytic, a network).
    times: the generator's times, latest first; one is a one-step generator. inputs: what the later times are trained on:
    "simulated" (the generator's own samples, noised: what it will meet) or "data" (noised real data). The time is drawn per step.
    features: the path of the module of `fake_score` whose output the head reads. conditional: pass `labels` of the batch on.
    critic_rate: factor on the fake score's learning rate.

    Defaults are those of the paper for ImageNet: 5 updates, window 2 to 98 %, realism_weight 3e-3, classifier_weight 1e-2.
    critic_updates=1, head=None is DMD without its regression on pairs. matching_weight=0 is a diffusion GAN.
    Deviation: plain noise-space denoising loss by default where the paper's ImageNet runs weight by EDM (its text-to-image runs
    do not). Checked against the authors' code: same normaliser, softplus terms, windows and order of updates.
    """

    def __init__(
        self,
        generator: nn.Module,
        teacher: nn.Module,
        fake_score: nn.Module,
        *,
        times: Sequence[int] = (999,),
        critic_updates: int = 5,
        window: tuple[float, float] = (0.02, 0.98),
        inputs: str = SIMULATED,
        head: nn.Module | None = None,
        features: str = "",
        matching_weight: float = 1.0,
        realism_weight: float = 3e-3,
        classifier_weight: float = 1e-2,
        weighting: str = "noise",
        critic_rate: float = 1.0,
        conditional: bool = False,
    ):
        steps = generator.schedule.steps
        if not times or list(times) != sorted(set(times), reverse=True) or not 0 <= times[-1] <= times[0] < steps:
            raise UsageError(f"DistributionMatching: times={tuple(times)!r} must fall, within 0 .. {steps - 1}")
        if isinstance(critic_updates, bool) or not isinstance(critic_updates, int) or critic_updates < 1:
            raise UsageError(f"DistributionMatching: critic_updates={critic_updates!r} must be a whole number from 1")
        if not 0 <= window[0] < window[1] <= 1:
            raise UsageError(f"DistributionMatching: window={window!r} must keep 0 <= low < high <= 1")
        if inputs not in (SIMULATED, DATA):
            raise UsageError(f"DistributionMatching: inputs={inputs!r} must be {SIMULATED!r} or {DATA!r}")
        if (head is None) == bool(features):
            raise UsageError("DistributionMatching: head and features go together: give both or neither")
        if head is None and not matching_weight:
            raise UsageError(
                "DistributionMatching: matching_weight 0 and no head leave the generator nothing to learn from"
            )
        if len({id(generator), id(teacher), id(fake_score)}) < 3:
            raise UsageError("DistributionMatching: generator, teacher and fake_score must be three modules: copy them")
        self.generator, self.teacher, self.fake_score, self.head = generator, teacher, fake_score, head
        self.times, self.critic_updates, self.window, self.inputs = tuple(times), critic_updates, window, inputs
        self.features, self.conditional = features, conditional
        self.weighting, self.critic_rate = weighting, critic_rate
        self.matching_weight, self.realism_weight = matching_weight, realism_weight
        self.classifier_weight = classifier_weight
        self.modules = {"generator": generator, "fake_score": fake_score}
        if head is not None:
            self.modules["head"] = head

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {"generator": ("generator",), "fake_score": tuple(name for name in self.modules if name != "generator")}

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"fake_score": self.critic_rate}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.teacher.to(device).eval().requires_grad_(False)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        data = batch[INPUT]
        condition = batch["labels"] if self.conditional else None
        moves = state.step % self.critic_updates == 0
        noisy, timestep = self.generator_inputs(data, condition)
        with torch.set_grad_enabled(moves):
            samples = self.generator(noisy, timestep, condition)
        losses = {}
        if moves:
            losses["generator"] = self._generator_loss(samples, condition)
        losses["fake_score"] = self._critic_loss(samples.detach(), data, condition)
        return losses

    @torch.no_grad()
    def generator_inputs(self, data: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the generator is given in this step, (B, ...) at one time of `times` drawn for the batch, and that time (B,)."""
        at = int(torch.randint(len(self.times), ()))
        timestep = torch.full((len(data),), self.times[at], device=data.device)
        noise = torch.randn_like(data)
        if at == 0:
            return noise, timestep
        clean = data
        if self.inputs == SIMULATED:
            clean = generate(self.generator, torch.randn_like(data), self.times[:at], condition)
        return self.generator.schedule.add_noise(clean, noise, timestep), timestep

    def _generator_loss(self, samples: Tensor, condition: Tensor | None) -> Loss:
        parts, total = {}, 0.0
        if self.matching_weight:
            parts["matching"] = along(samples, self.direction(samples.detach(), condition))
            total = self.matching_weight * parts["matching"]
        if self.head is not None:
            parts["realism"] = realism_loss(self.realism(samples, condition))
            total = total + self.realism_weight * parts["realism"]
        return Loss(total, {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def direction(self, samples: Tensor, condition: Tensor | None) -> Tensor:
        """`matching_direction` of samples noised to a random time of the window."""
        schedule = self.generator.schedule
        low, high = (int(share * schedule.steps) for share in self.window)
        timestep = random_times(len(samples), low, min(high + 1, schedule.steps), samples.device)
        noisy = schedule.add_noise(samples, torch.randn_like(samples), timestep)
        real, fake = self.teacher(noisy, timestep, condition), self.fake_score(noisy, timestep, condition)
        return matching_direction(samples, real, fake)

    def _critic_loss(self, samples: Tensor, data: Tensor, condition: Tensor | None) -> Loss:
        denoising = noised_loss(self.fake_score, samples, condition, self.weighting)
        if self.head is None:
            return Loss(denoising, {"denoising": denoising.detach()})
        both = None if condition is None else torch.cat([condition, condition])
        judged = classifier_loss(*self.realism(torch.cat([samples, data]), both).chunk(2))
        parts = {"denoising": denoising.detach(), "classifier": judged.detach()}
        return Loss(denoising + self.classifier_weight * judged, parts)

    def realism(self, samples: Tensor, condition: Tensor | None) -> Tensor:
        """The head's logits (B, 1) on the fake score's features of samples noised to a time from the whole schedule."""
        schedule = self.generator.schedule
        timestep = random_times(len(samples), 0, schedule.steps, samples.device)
        noisy = schedule.add_noise(samples, torch.randn_like(samples), timestep)
        with Tap(self.fake_score, {self.features}) as tap:
            found = tap({"noisy": noisy, "timestep": timestep, "condition": condition})
        return self.head(found[self.features])

    def model(self) -> None:
        return None

    def describe(self) -> Any:
        names = ("times", "critic_updates", "window", "inputs", "features", "matching_weight", "realism_weight")
        names += ("classifier_weight", "weighting", "critic_rate", "conditional")
        return {"procedure": type(self).__name__, **{name: _plain(getattr(self, name)) for name in names}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
