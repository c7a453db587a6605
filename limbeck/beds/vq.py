"""Pixels: small grey images as bytes, for codecs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.beds.base import Bed
from limbeck.datasets.images import decode
from limbeck.datasets.load import load
from limbeck.files import digest

if TYPE_CHECKING:
    from limbeck.experiments.run import Run

HELD = 1000  # of the train split's images, its last ones, for validation


@functools.lru_cache(maxsize=2)
def _images(name: str) -> dict[str, Tensor]:
    found = load(name)
    return {split: decode(found[split], "image", f"split {split!r} of {name!r}") for split in ("train", "test")}


@dataclass(frozen=True)
class Pixels(Bed):
    """MNIST as it is, 28 x 28 bytes: `train` images to learn from, `measured` ones of each other split to code.

    Reference: the smallest of PNG, WebP and bz2; `expects` its bits per pixel.
    """

    name: str = "mnist"
    train: int = 8000
    measured: int = 500
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"bits_per_pixel": (1.2, 2.4)})

    def images(self, split: str) -> Tensor:
        """uint8 (N, 1, 28, 28); the same images whatever the seed."""
        found = _images(self.name)
        if split == "test":
            return found["test"][:: max(1, len(found["test"]) // self.measured)][: self.measured]
        if split == "validation":
            return found["train"][-HELD:][: self.measured]
        return found["train"][:-HELD][: self.train]

    def digest(self) -> str:
        return digest([self.name, self.train, self.measured, *(int(self.images(s).sum()) for s in ("train", "test"))])

    def reference(self, run: Run) -> dict[str, float]:
        images = self.images(run.split)
        return {"bits_per_pixel": 8 * min(usual_codecs(images).values()) / images.numel()}


def mosaic(images: Tensor) -> Tensor:
    """Images (N, 1, H, W) side by side in one picture (H rows, W columns of them), filled up with zeros."""
    count, _, height, width = images.shape
    across = int(count**0.5 + 0.999)
    down = -(-count // across)
    made = torch.zeros(across * down, height, width, dtype=images.dtype)
    made[:count] = images[:, 0]
    return made.reshape(down, across, height, width).transpose(1, 2).reshape(down * height, across * width)


def tiles(picture: Tensor, count: int, height: int, width: int) -> Tensor:
    """`mosaic` undone: the first `count` images (count, 1, H, W) of a picture."""
    down, across = picture.shape[0] // height, picture.shape[1] // width
    made = picture.reshape(down, height, across, width).transpose(1, 2).reshape(-1, 1, height, width)
    return made[:count]


def usual_codecs(images: Tensor) -> dict[str, int]:
    """Bytes that lossless codecs take for images (N, 1, H, W): the fewer of one file per image, and all in one picture.

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
        Image.fromarray(picture.numpy(), "L").save(out, **saved)
        return out.tell()

    together = mosaic(images)
    found = {
        name: min(size(together, saved), sum(size(image[0], saved) for image in images))
        for name, saved in settings.items()
    }
    found["bz2"] = len(bz2.compress(images.numpy().tobytes(), 9))
    return found
