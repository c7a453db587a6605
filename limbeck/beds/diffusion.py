"""Diffusion beds: points of a Gaussian mixture, whose scores are known exactly, and small handwritten digits.

Both give a `task` (real data), a `schedule`, an untrained `denoiser`, the `pretrained` one (from the store), and `quality` of samples.
"""

from __future__ import annotations

import abc
import copy
import functools
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.beds.base import Bed
from limbeck.datasets.load import data_folder
from limbeck.diffusion.denoisers import Denoiser, Denoising
from limbeck.diffusion.metrics import frechet_distance, maximum_mean_discrepancy, mode_coverage
from limbeck.diffusion.mixtures import GaussianMixture, MixtureDenoiser, ring
from limbeck.diffusion.samplers import sample
from limbeck.diffusion.schedules import NoiseSchedule
from limbeck.experiments.run import Run
from limbeck.files import digest, file_digest
from limbeck.models.denoising_mlp import denoising_mlp
from limbeck.tasks.custom import CustomTask
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised

BANDWIDTHS = (0.05, 0.1, 0.2, 0.5, 1.0)


class DiffusionBed(Bed, abc.ABC):
    """What both beds share. A subclass is a frozen dataclass with the fields `width`, `blocks`, `steps`, `batch_size`, `learning_rate`."""

    shape: tuple[int, ...]
    classes: int
    conditional: bool

    @property
    def schedule(self) -> NoiseSchedule:
        return NoiseSchedule()

    def denoiser(self) -> Denoiser:
        """Untrained; predicts velocity. `network.blocks.N` are the places where heads attach."""
        network = denoising_mlp(self.shape, self.width, self.blocks, self.classes if self.conditional else 0)
        return Denoiser(network, self.schedule, "velocity")

    def pretrained(self, run: Run) -> Denoiser:
        """The denoiser trained on the bed's data; one for all runs."""
        config = TrainingConfig(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        config = TrainingConfig(**{**asdict(config), "average": 0.999, "gradient_clipping": 1.0})
        key = {"what": "denoiser", "bed": self.digest(), "config": config.to_json(), "seed": 0, "version": 1}

        def train(denoiser: Denoiser) -> None:
            run.train(Denoising(denoiser, conditional=self.conditional), self.task(run), config, seed=0, counted=False)

        return run.trained(key, self.denoiser, train)

    def noise(self, run: Run, count: int) -> Tensor:
        """Pure noise (count, *shape) to sample from; a function of the run's seed."""
        return torch.randn(count, *self.shape, generator=run.generator("noise"))

    def labels(self, count: int) -> Tensor | None:
        """Conditions for `count` samples, the classes in turn; None for an unconditional bed."""
        return torch.arange(count) % self.classes if self.conditional else None

    @abc.abstractmethod
    def task(self, run: Run) -> Any:
        """The bed's data."""

    def reference(self, run: Run) -> dict[str, float]:
        """The pretrained denoiser with 50 DDIM steps."""
        count = 2000
        made = sample(self.pretrained(run), self.noise(run, count), 50, condition=self.labels(count))
        return self.quality(run, made)

    @abc.abstractmethod
    def quality(self, run: Run, samples: Tensor) -> dict[str, float]:
        """How good samples are, against `run.split`."""


@dataclass(frozen=True)
class MixtureBed(DiffusionBed):
    """Points (2,) of equal Gaussians on a circle of unit variance. `exact()` is a perfect teacher."""

    name: str = "eight gaussians"
    modes: int = 8
    radius: float = 1.4
    deviation: float = 0.14
    examples: int = 8192
    width: int = 64
    blocks: int = 3
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 2e-3

    shape = (2,)
    conditional = False
    expects: ClassVar = {"mmd": (-0.001, 0.008), "precision": (0.75, 1.0), "coverage": (1.0, 1.0)}

    @property
    def classes(self) -> int:
        return self.modes

    @property
    def mixture(self) -> GaussianMixture:
        return ring(self.modes, self.radius, self.deviation)

    def exact(self) -> MixtureDenoiser:
        """The exact denoiser of the mixture; conditional on the mode where asked."""
        return MixtureDenoiser(self.mixture, self.schedule)

    def digest(self) -> str:
        return digest(asdict(self))

    def points(self, split: str) -> tuple[Tensor, Tensor]:
        """Points and their modes."""
        seed = {"train": 1, "validation": 2, "test": 3}[split]
        count = self.examples if split == "train" else 2048
        return self.mixture.sample(count, torch.Generator().manual_seed(seed))

    def task(self, run: Run) -> CustomTask:
        splits = {split: self.points(split) for split in ("train", "validation", "test")}
        return CustomTask(splits, classes=self.modes, name=self.name, version=self.digest())

    def quality(self, run: Run, samples: Tensor) -> dict[str, float]:
        """mmd (squared), and coverage, precision and balance of the modes within 3 deviations."""
        real, _ = self.points(run.split)
        spread = mode_coverage(samples, self.mixture.centres, 3 * self.deviation)
        return {"mmd": maximum_mean_discrepancy(samples, real, BANDWIDTHS).item(), **spread}


class Features(nn.Module):
    """A small classifier whose last hidden layer, 32 numbers, is what images are compared in."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.SiLU(), nn.Linear(128, 32), nn.SiLU())
        self.out = nn.Linear(32, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.out(self.hidden(pixel_values))


@dataclass(frozen=True)
class DigitsBed(DiffusionBed):
    """MNIST at 14 x 14 in -1 .. 1, conditional on the digit. The last 5000 of train are the validation split."""

    name: str = "mnist 14x14"
    dataset: str = "mnist"
    examples: int = 20000
    width: int = 256
    blocks: int = 3
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 1e-3

    shape = (1, 14, 14)
    classes = 10
    conditional = True
    expects: ClassVar = {"frechet": (0.0, 4.0), "accuracy": (0.75, 1.0)}

    def digest(self) -> str:
        return digest({**asdict(self), "files": _digests(str(data_folder() / self.dataset))})

    def images(self, run: Run) -> dict[str, Tensor]:
        """uint8 images (N, 1, 14, 14) and labels (N,) of every split, as "train.images", "train.labels", ..."""

        def make() -> dict[str, Tensor]:
            from limbeck.tasks.images import ImageClassification

            task = ImageClassification(self.dataset, mean=(0.0,), std=(1.0,), holdout=1 / 12)
            limits = {"train": self.examples, "validation": None, "test": None}
            made = {}
            for split, limit in limits.items():
                batch = next(task.batches(split, limit or task.size(split), limit=limit))
                small = F.avg_pool2d(batch["pixel_values"], 2) * 255
                made |= {f"{split}.images": small.round().to(torch.uint8), f"{split}.labels": batch["labels"]}
            return made

        return run.tensors({"what": "images", "bed": self.digest(), "version": 1}, make)

    def task(self, run: Run) -> CustomTask:
        found = self.images(run)
        splits = {split: (found[f"{split}.images"].float() / 127.5 - 1, found[f"{split}.labels"]) for split in SPLITS}
        return CustomTask(splits, classes=self.classes, name=self.name, version=self.digest())

    def features(self, run: Run) -> Features:
        """The classifier in whose features images are compared."""
        key = {"what": "features", "bed": self.digest(), "seed": 0, "version": 1}
        config = TrainingConfig(epochs=6, batch_size=128, learning_rate=2e-3)

        def train(model: Features) -> None:
            task = self.task(run)
            run.train(Supervised(model, task), task, config, seed=0, counted=False)

        return run.trained(key, lambda: Features(196, self.classes), train)

    def quality(self, run: Run, samples: Tensor) -> dict[str, float]:
        """frechet: distance of features from the split's images; accuracy: the share that the classifier reads as its class."""
        judge, found = self.features(run), self.images(run)
        with torch.no_grad():
            real = judge.hidden(found[f"{run.split}.images"].float() / 127.5 - 1)
            made, read = judge.hidden(samples), judge(samples).argmax(-1)
        right = (read == self.labels(len(samples))).double().mean().item()
        return {"frechet": frechet_distance(made, real), "accuracy": right}


SPLITS = ("train", "validation", "test")


@functools.lru_cache(maxsize=4)
def _digests(folder: str) -> dict[str, str]:
    from pathlib import Path

    return {path.name: file_digest(path) for path in sorted(Path(folder).rglob("*.parquet"))}


def copies(module: nn.Module, count: int) -> list[nn.Module]:
    """`count` independent copies of a module, all trainable: generator and fake score begin as the teacher."""
    return [copy.deepcopy(module).train().requires_grad_(True) for _ in range(count)]
