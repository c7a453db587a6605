"""Dataset distillation: a few synthetic images whose features are distributed as those of the real ones, class by class.

    minimize over images   sum_c  d( features(real of class c), features(synthetic of class c) )

`MeanMatching` compares means (distribution matching); `CharacteristicMatching` whole distributions through their characteristic
functions, at frequencies that are Gaussian or that an adversary (`FrequencySampler`) chooses.
Sources: Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, eq. 4; Wang et al., "Dataset Distillation with
Neural Characteristic Function: A Minmax Perspective", CVPR 2025 (NCFM).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.signals import capture
from limbeck.training.procedures import Losses, Procedure, State

SMALLEST = 1e-12  # under the root of the discrepancy, so that equal distributions have a finite gradient


def characteristic_function(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Phi(t) = mean_n exp(i <t, f_n>): its real and imaginary parts, each (T,). Shapes: features (N, D), frequencies (T, D)."""
    angle = features @ frequencies.T
    return angle.cos().mean(0), angle.sin().mean(0)


def characteristic_discrepancy(
    real: Tensor, synthetic: Tensor, frequencies: Tensor, amplitude: float = 0.5, phase: float = 0.5
) -> Tensor:
    """mean_t sqrt( amplitude (|P| - |Q|)^2 + phase 2 (|P||Q| - Re P Re Q - Im P Im Q) ),   P, Q: characteristic functions

    With amplitude = phase = 1 the root is |P - Q|. Amplitudes carry diversity, phases realism. Shapes: real (N, D), synthetic (M, D),
    frequencies (T, D); a scalar. Source: NCFM, eq. 6. Deviation: at least 1e-12 under the root (the authors' code bounds the phase
    part so); otherwise it agrees with their code.
    """
    (a, b), (c, d) = characteristic_function(real, frequencies), characteristic_function(synthetic, frequencies)
    size_real, size_synthetic = (a * a + b * b + SMALLEST).sqrt(), (c * c + d * d + SMALLEST).sqrt()
    squared = amplitude * (size_real - size_synthetic).square()
    squared = squared + 2 * phase * (size_real * size_synthetic - a * c - b * d)
    return squared.clamp(min=SMALLEST).sqrt().mean()


@dataclass(frozen=True)
class MeanMatching:
    """|mean f(real) - mean f(synthetic)|^2: blind to everything but the mean. Shapes: (N, D), (M, D)."""

    def __call__(self, real: Tensor, synthetic: Tensor, frequencies: Tensor | None = None) -> Tensor:
        return (real.mean(0) - synthetic.mean(0)).square().sum()


@dataclass(frozen=True)
class CharacteristicMatching:
    """`scale` times `characteristic_discrepancy` of features normalized to length 1.

    count: how many frequencies are drawn, from N(0, I) unless they are given. Defaults are those of the authors' code; the
    paper's formula has neither the scale nor the normalization.
    """

    amplitude: float = 0.5
    phase: float = 0.5
    count: int = 4096
    scale: float = 300.0

    def __post_init__(self) -> None:
        if self.amplitude < 0 or self.phase < 0 or self.amplitude + self.phase <= 0:
            raise UsageError(
                f"CharacteristicMatching: amplitude={self.amplitude}, phase={self.phase} must be >= 0, not both 0"
            )
        if self.count < 1 or self.scale <= 0:
            raise UsageError(
                f"CharacteristicMatching: count={self.count} must be at least 1 and scale={self.scale} above 0"
            )

    def __call__(self, real: Tensor, synthetic: Tensor, frequencies: Tensor | None = None) -> Tensor:
        real, synthetic = F.normalize(real, dim=1), F.normalize(synthetic, dim=1)
        if frequencies is None:
            frequencies = torch.randn(self.count, real.shape[1], device=real.device)
        return self.scale * characteristic_discrepancy(real, synthetic, frequencies, self.amplitude, self.phase)


class FrequencySampler(nn.Module):
    """Noise N(0, I) (T, D) to frequencies (T, D): three linear layers with batch norm, LeakyReLU twice, then tanh.

    Trained to enlarge the discrepancy. reach: factor on the output; tanh keeps every frequency within -reach .. reach.
    Source: NCFM, section 3.3 and the authors' code, whose reach is 1.
    """

    def __init__(self, dimension: int, count: int = 4096, reach: float = 1.0):
        super().__init__()
        if dimension < 1 or count < 2 or reach <= 0:
            raise UsageError(
                f"FrequencySampler: dimension={dimension}, count={count} (from 2), reach={reach} do not fit"
            )
        self.dimension, self.count, self.reach = dimension, count, reach
        layers: list[nn.Module] = []
        for last in (nn.LeakyReLU(0.2), nn.LeakyReLU(0.2), nn.Tanh()):
            layers += [nn.Linear(dimension, dimension), nn.BatchNorm1d(dimension), last]
        self.layers = nn.Sequential(*layers)

    def forward(self) -> Tensor:
        noise = torch.randn(self.count, self.dimension, device=self.layers[0].weight.device)
        return self.reach * self.layers(noise)


class SyntheticSet(nn.Module):
    """Images that are parameters, and their labels. images (N, C, H, W) to begin with; labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor):
        super().__init__()
        if len(images) != len(labels):
            raise UsageError(f"SyntheticSet: {len(images)} images and {len(labels)} labels: give one label per image")
        self.images = nn.Parameter(images.detach().clone())
        self.register_buffer("labels", labels.clone())

    def forward(self) -> Tensor:
        return self.images


def select_per_class(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of `count` random examples of every class, class after class: (classes * count,).

    Raises UsageError when a class has fewer.
    """
    chosen = []
    for label in labels.unique():
        at = (labels == label).nonzero()[:, 0]
        if len(at) < count:
            raise UsageError(f"class {int(label)} has {len(at)} examples, fewer than count={count}")
        chosen.append(at[torch.randperm(len(at), generator=generator)[:count]])
    return torch.cat(chosen)


def shifted(images: Sequence[Tensor], pixels: int) -> list[Tensor]:
    """Siamese augmentation: one random shift of up to `pixels`, zeros moving in, the same for all the given batches."""
    if pixels == 0:
        return list(images)
    down, right = torch.randint(0, 2 * pixels + 1, (2,)).tolist()
    out = []
    for batch in images:
        height, width = batch.shape[-2:]
        out.append(F.pad(batch, (pixels,) * 4)[..., down : down + height, right : right + width])
    return out


@torch.no_grad()
def interpolate(network: nn.Module, first: Mapping[str, Tensor], last: Mapping[str, Tensor], share: float) -> None:
    """The network takes the weights (1 - share) first + share last; whole numbers stay as they are."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.lerp(first[name].to(value), last[name].to(value), share))


class DistributionCondensation(Procedure):
    """Learn a `SyntheticSet` by matching feature distributions, with an adversary over frequencies where a sampler is given.

    Every step: a network is drawn (random and trained weights of one of `pairs`, interpolated by a uniform share), real batch and
    synthetic images are shifted alike, and
        L_images  = sum_c metric(f(real_c), f(synthetic_c); t) + calibration_weight CE(trained(synthetic), labels)
        L_sampler = - sum_c metric(f(real_c), f(synthetic_c); t)         (gradient ascent)

    network: the architecture; its weights are not used. pairs: (random, trained) state dicts of it. features: the path of its module whose
    flattened output is compared. metric: `MeanMatching()`, `CharacteristicMatching()`, or any f(real, synthetic, frequencies).
    shift: see `shifted`. sampler_rate: factor on the sampler's learning rate. Classes that the batch lacks are left out.
    Deviation: all classes move together, one step each, where the authors step class after class.
    """

    def __init__(
        self,
        synthetic: SyntheticSet,
        network: nn.Module,
        pairs: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
        metric: Callable[..., Tensor],
        *,
        features: str = "features",
        sampler: FrequencySampler | None = None,
        calibration_weight: float = 1.0,
        shift: int = 1,
        sampler_rate: float = 1.0,
    ):
        if not pairs:
            raise UsageError("DistributionCondensation: pairs is empty: give (random, trained) weights of the network")
        if calibration_weight < 0 or shift < 0:
            raise UsageError(
                f"DistributionCondensation: calibration_weight={calibration_weight}, shift={shift} are below 0"
            )
        self.synthetic, self.pairs, self.metric = synthetic, pairs, metric
        self.network, self.judge = (copy.deepcopy(network).eval().requires_grad_(False) for _ in range(2))
        self.features, self.sampler, self.calibration_weight = features, sampler, calibration_weight
        self.shift, self.sampler_rate = shift, sampler_rate
        self.modules = {"images": synthetic}
        if sampler is not None:
            self.modules["sampler"] = sampler

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {name: (name,) for name in self.modules}

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"sampler": self.sampler_rate}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.network.to(device)
        self.judge.to(device)

    def matching(self, real: Tensor, labels: Tensor, synthetic: Tensor, frequencies: Tensor | None) -> Tensor:
        """The sum over classes of the metric, with the network as it is loaded."""
        with torch.no_grad():
            of_real = capture(self.network, {"pixel_values": real}, {self.features})[self.features].flatten(1)
        of_synthetic = capture(self.network, {"pixel_values": synthetic}, {self.features})[self.features].flatten(1)
        terms = []
        for label in self.synthetic.labels.unique():
            mine = labels == label
            if mine.any():
                terms.append(self.metric(of_real[mine], of_synthetic[self.synthetic.labels == label], frequencies))
        return torch.stack(terms).sum() if terms else of_synthetic.sum() * 0

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        interpolate(self.network, *self.pairs[int(torch.randint(len(self.pairs), ()))], float(torch.rand(())))
        frequencies = self.sampler() if self.sampler is not None else None
        real, synthetic = shifted((batch["pixel_values"], self.synthetic()), self.shift)
        matching = self.matching(real, batch["labels"], synthetic, frequencies)
        parts, total = {"matching": matching.detach()}, matching
        if self.calibration_weight:
            interpolate(self.judge, *self.pairs[int(torch.randint(len(self.pairs), ()))], 1.0)
            calibration = F.cross_entropy(
                capture(self.judge, {"pixel_values": synthetic}).logits, self.synthetic.labels
            )
            parts["calibration"] = calibration.detach()
            total = total + self.calibration_weight * calibration
        losses = {"images": Loss(total, parts)}
        if self.sampler is not None:
            losses["sampler"] = Loss(-matching, {})
        return losses

    def model(self) -> None:
        return None

    def describe(self) -> Any:
        settings = {"features": self.features, "calibration_weight": self.calibration_weight, "shift": self.shift}
        return {"procedure": type(self).__name__, "metric": repr(self.metric), "pairs": len(self.pairs), **settings}
