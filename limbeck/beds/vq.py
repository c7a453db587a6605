"""Pixels: small images as bytes (MNIST, and crops of photographs), an autoencoder with a codebook, and the usual codecs to compare with."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from limbeck.beds.base import Bed
from limbeck.datasets.images import decode
from limbeck.datasets.load import load
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.models.resnet import resnet
from limbeck.objectives import CrossEntropy
from limbeck.signals import capture
from limbeck.tasks.base import SPLITS
from limbeck.tasks.custom import CustomTask
from limbeck.training import Supervised, TrainingConfig

if TYPE_CHECKING:
    from limbeck.experiments.run import Run

VERSION = 1  # of how models are trained
CLASSES = {"mnist": 10, "kodak": 24}
HELD = 1000  # of the train split's images, its last ones, for validation


class PixelBed(Bed, abc.ABC):
    """What both beds share. A subclass is a frozen dataclass whose `name` is that of its data set.

    Reference: `bits_per_pixel` and channel of the smallest of PNG, WebP and bz2, lossless; `psnr` (dB) of the autoencoder, which
    describes each 4 x 4 square by one of its codes. steps, least_use: of the autoencoder.
    """

    steps = 400
    least_use = 0.01

    @abc.abstractmethod
    def images(self, split: str) -> Tensor:
        """uint8 (N, C, H, W); the same images whatever the seed."""

    @abc.abstractmethod
    def labels(self, split: str) -> Tensor:
        """(N,), of `images`: what is told apart."""

    def task(self) -> CustomTask:
        """The train images as pixel_values in 0..1 with their labels; test and validation as they are measured."""
        return _task(self)

    def autoencoder(self, run: Run, steps: int | None = None, codes: int = 256) -> nn.Module:
        """A vector-quantized autoencoder, trained once and shared by everyone; steps: by default the bed's."""
        from limbeck.codecs.index_codec import Autoencode
        from limbeck.models.vq_autoencoder import vq_autoencoder

        config = TrainingConfig(steps=steps or self.steps, batch_size=64, learning_rate=2e-3)
        key = {
            "bed": self.digest(),
            "model": "autoencoder",
            "codes": codes,
            "config": config.to_json(),
            "version": VERSION,
        }
        key |= {"least_use": self.least_use} if self.least_use != PixelBed.least_use else {}

        def train(model: nn.Module) -> None:
            run.train(Autoencode(model), self.task(), config, seed=0, counted=False)

        sizes = {"channels": self.images("train").shape[1], "width": 32, "codes": codes, "least_use": self.least_use}
        return run.trained(key, lambda: vq_autoencoder(**sizes), train)

    def collections(self) -> tuple[str, ...]:
        return (self.name,)

    def reference(self, run: Run) -> dict[str, float]:
        images, model = self.images(run.split), self.autoencoder(run)
        made = torch.cat([model.decode(model.indices(part.float() / 255)) for part in images.split(100)])
        return {
            "bits_per_pixel": 8 * min(usual_codecs(images).values()) / images.numel(),
            "psnr": psnr(images.float() / 255, made),
        }


@functools.lru_cache(maxsize=2)
def _images(name: str) -> dict[str, Tensor]:
    found = load(name)
    return {split: decode(found[split], "image", f"split {split!r} of {name!r}") for split in ("train", "test")}


@functools.lru_cache(maxsize=2)
def _labels(name: str) -> dict[str, Tensor]:
    return {split: torch.tensor(rows["label"]) for split, rows in load(name).items()}


@dataclass(frozen=True)
class Pixels(PixelBed):
    """MNIST as it is, 28 x 28 bytes: `train` images to learn from, `measured` ones of each other split to code."""

    name: str = "mnist"
    train: int = 8000
    measured: int = 500
    expects: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"bits_per_pixel": (1.2, 2.4), "psnr": (18.5, 24.0)}, hash=False, compare=False
    )

    def labels(self, split: str) -> Tensor:
        return self._part(_labels(self.name), split)

    def images(self, split: str) -> Tensor:
        return self._part(_images(self.name), split)

    def _part(self, found: Mapping[str, Tensor], split: str) -> Tensor:
        if split == "test":
            return found["test"][:: max(1, len(found["test"]) // self.measured)][: self.measured]
        if split == "validation":
            return found["train"][-HELD:][: self.measured]
        return found["train"][:-HELD][: self.train]

    def classifier(self, run: Run, steps: int = 200) -> nn.Module:
        """A residual network that tells the digits apart, trained once: its features say how alike two images are."""
        config = TrainingConfig(steps=steps, batch_size=64, learning_rate=2e-3)
        key = {"bed": self.digest(), "model": "classifier", "config": config.to_json(), "version": VERSION}

        def train(model: nn.Module) -> None:
            run.train(Supervised(model, CrossEntropy()), self.task(), config, seed=0, counted=False)

        return run.trained(key, lambda: resnet(8, 10, 1, 8), train)

    def digest(self) -> str:
        return digest([self.name, self.train, self.measured, *(int(self.images(s).sum()) for s in ("train", "test"))])


@functools.lru_cache(maxsize=2)
def _photographs(name: str) -> list[Tensor]:
    found = load(name)["test"]  # the only split there is; the photographs are not all of one format
    return [decode(found.select([i]), "image", f"row {i} of {name!r}")[0] for i in range(len(found))]


@dataclass(frozen=True)
class Crops(PixelBed):
    """Squares of `size` pixels out of the 24 photographs of kodak, in colour. No photograph is in two splits: of every six the fifth is for
    validation and the sixth for test. Train: `train` crops at random places, as many of each photograph; the others:
    `measured` crops on an even grid. Labels: the number of the photograph.
    """

    name: str = "kodak"
    size: int = 32
    train: int = 4000
    measured: int = 256

    steps = 800
    least_use = 1.0
    expects: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"bits_per_pixel": (2.3, 5.0), "psnr": (18.0, 26.0)}, hash=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.size < 4 or self.size % 4:
            raise UsageError(f"size={self.size}: must be a multiple of 4, because the autoencoder divides it by 4")

    def images(self, split: str) -> Tensor:
        return _crops(self)[split][0]

    def labels(self, split: str) -> Tensor:
        return _crops(self)[split][1]

    def digest(self) -> str:
        sums = (int(self.images(split).sum()) for split in SPLITS)
        return digest([self.name, self.size, self.train, self.measured, *sums])


@functools.lru_cache(maxsize=2)
def _crops(bed: Crops) -> dict[str, tuple[Tensor, Tensor]]:
    photographs = _photographs(bed.name)
    numbers: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number in range(len(photographs)):
        numbers[{4: "validation", 5: "test"}.get(number % 6, "train")].append(number)
    made, draw = {}, torch.Generator().manual_seed(0)
    for split, chosen in numbers.items():
        each = (bed.train if split == "train" else bed.measured) // len(chosen)
        cut = [crops(photographs[n], bed.size, each, draw if split == "train" else None) for n in chosen]
        made[split] = torch.cat(cut), torch.tensor(chosen).repeat_interleave(each)
    return made


def crops(picture: Tensor, size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` squares (count, C, size, size) of a picture (C, H, W): at random places, or without a generator evenly spaced over those
    of a grid on which they do not touch.
    """
    channels, height, width = picture.shape
    if generator is None:
        grid = (
            picture.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).reshape(-1, channels, size, size)
        )
        if not 1 <= count <= len(grid):
            raise UsageError(f"count={count}: the picture has room for 1 to {len(grid)} squares of {size} pixels")
        return grid[torch.arange(count) * len(grid) // count]
    top = torch.randint(0, height - size + 1, (count,), generator=generator).tolist()
    left = torch.randint(0, width - size + 1, (count,), generator=generator).tolist()
    return torch.stack([picture[:, y : y + size, x : x + size] for y, x in zip(top, left)])


@functools.lru_cache(maxsize=2)
def _task(bed: PixelBed) -> CustomTask:
    splits = {}
    for split in SPLITS:
        images, labels = bed.images(split), bed.labels(split)
        splits[split] = {"pixel_values": images.float() / 255, "labels": labels}
    return CustomTask(splits, classes=CLASSES[bed.name], version=bed.digest(), name=bed.name)


def psnr(one: Tensor, other: Tensor) -> float:
    """-10 log10 of the mean squared difference of images in 0..1, in decibels."""
    return -10 * math.log10(max(float((one - other).square().mean()), 1e-12))


@torch.no_grad()
def feature_distance(classifier: nn.Module, one: Tensor, other: Tensor) -> float:
    """How differently a classifier sees two sets of images (N, 1, H, W) in 0..1.

    mean over images, places and stages of |f / |f| - g / |g||^2, with f and g the channels at a place: the form of learned perceptual
    distances (Zhang et al., "The Unreasonable Effectiveness of Deep Features", 2018) with all channels alike.
    """
    stages, total = ("layer1", "layer2", "layer3"), 0.0
    for a, b in zip(one.split(100), other.split(100)):
        f, g = (capture(classifier, {"pixel_values": x}, stages) for x in (a, b))
        for stage in stages:
            distance = (normalize(f[stage], dim=1) - normalize(g[stage], dim=1)).square().sum(1)
            total += float(distance.mean((1, 2)).sum())
    return total / len(stages) / len(one)


def mosaic(images: Tensor) -> Tensor:
    """Images (N, C, H, W) side by side in one picture, filled up with zeros: (rows H, columns W), of several channels with C behind."""
    count, channels, height, width = images.shape
    across = int(count**0.5 + 0.999)
    down = -(-count // across)
    made = torch.zeros(across * down, height, width, channels, dtype=images.dtype)
    made[:count] = images.permute(0, 2, 3, 1)
    picture = made.unflatten(0, (down, across)).transpose(1, 2).reshape(down * height, across * width, channels)
    return picture if channels > 1 else picture[..., 0]


def tiles(picture: Tensor, count: int, height: int, width: int) -> Tensor:
    """`mosaic` undone: the first `count` images (count, C, H, W) of a picture."""
    down, across = picture.shape[0] // height, picture.shape[1] // width
    made = (
        picture.reshape(down, height, across, width, -1)
        .permute(0, 2, 4, 1, 3)
        .reshape(down * across, -1, height, width)
    )
    return made[:count]


def usual_codecs(images: Tensor) -> dict[str, int]:
    """Bytes that lossless codecs take for images (N, 1 or 3, H, W): the fewer of one file per image, and all in one picture.

    PNG and WebP with their strongest settings, bz2 over the raw bytes, image by image one after the other.
    """
    import bz2
    import io

    from PIL import Image

    settings = {
        "png": {"format": "PNG", "optimize": True},
        "webp": {"format": "WEBP", "lossless": True, "quality": 100, "method": 6},
    }

    def size(picture: Tensor, saved: dict) -> int:
        out = io.BytesIO()
        Image.fromarray(picture.numpy()).save(out, **saved)
        return out.tell()

    together = mosaic(images)
    found = {
        name: min(size(together, saved), sum(size(mosaic(image[None]), saved) for image in images))
        for name, saved in settings.items()
    }
    found["bz2"] = len(bz2.compress(images.numpy().tobytes(), 9))
    return found


def jpeg(images: Tensor, budget: float) -> tuple[Tensor, int]:
    """Images (N, 1, H, W) after JPEG, all in one picture so that they share its header: decoded uint8 images and the bytes.

    At full and at half resolution the lowest quality whose file has at least `budget` bytes (the highest where none has); of the two the
    one with the smaller squared error. So JPEG has at least the budget, rounded up.
    """
    import io

    import numpy
    from PIL import Image

    picture = Image.fromarray(mosaic(images).numpy(), "L")
    tried = []
    for divisor in (1, 2):
        small = picture.resize((picture.width // divisor, picture.height // divisor), Image.Resampling.BOX)
        for quality in range(1, 96, 2):
            out = io.BytesIO()
            small.save(out, format="JPEG", quality=quality, optimize=True)
            tried.append((out.tell(), divisor, out.getvalue()))
            if out.tell() > 2 * budget:
                break
    found = []
    for divisor in (1, 2):
        rows = [row for row in tried if row[1] == divisor]
        above = [row for row in rows if row[0] >= budget]
        found.append(min(above) if above else max(rows))
    best, _, height, width = None, *images.shape[1:]
    for size, _, data in found:
        back = Image.open(io.BytesIO(data)).resize(picture.size, Image.Resampling.BICUBIC)
        made = tiles(torch.from_numpy(numpy.array(back)), len(images), height, width)
        error = float((made.float() - images.float()).square().mean())
        if best is None or error < best[0]:
            best = (error, made, size)
    return best[1], best[2]
