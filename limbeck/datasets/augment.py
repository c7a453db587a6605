"""Other views of a batch: strongly changed images, rotations with labels that name them, and disturbances to test with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError


def pixels(batch: Mapping[str, Any], owner: str) -> Tensor:
    """The images (B, C, H, W) of a batch. Raises UsageError where there are none."""
    images = batch.get("pixel_values")
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise UsageError(f"{owner} needs batch['pixel_values'] of shape (B, C, H, W); the batch has {sorted(batch)}")
    return images


@dataclass(frozen=True)
class StrongView:
    """Change every image of a batch strongly: contrast, brightness, and one square cut out.

    x' = (1 + c) x + b with c, b uniform in [-strength, strength] per image, then a square of `cut` times the side is set to 0, its
    centre uniform over the image. Images are normalized ones, so 0 is the mean colour. Everything is drawn from the global generator,
    which the Trainer seeds from (seed, step). Source of the cut: DeVries and Taylor, "Cutout", 2017.
    """

    strength: float = 0.5
    cut: float = 0.4

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1 or not 0 <= self.cut <= 1:
            raise UsageError(f"StrongView: strength={self.strength!r} must be in [0, 1) and cut={self.cut!r} in [0, 1]")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = pixels(batch, "StrongView")
        count, _, height, width = images.shape
        draws = torch.rand(4, count, 1, 1, 1).to(images)
        contrast, brightness = self.strength * (2 * draws[:2] - 1)
        rows = torch.arange(height, device=images.device).reshape(-1, 1)
        columns = torch.arange(width, device=images.device).reshape(1, -1)
        across = (columns + 0.5 - draws[2] * width).abs() < self.cut * width / 2
        down = (rows + 0.5 - draws[3] * height).abs() < self.cut * height / 2
        changed = (1 + contrast) * images + brightness
        return {**batch, "pixel_values": changed.masked_fill(across & down, 0.0) if self.cut else changed}


@dataclass(frozen=True)
class Rotations:
    """Every image of a batch in its four rotations, with labels that name class and rotation together.

    images (B, C, S, S) -> (4 B, C, S, S): all at 0 degrees, then 90, 180, 270. `joint_labels` (4 B,) = 4 y + r with r the number of
    quarter turns; `labels` stay with the upright images and are -100 for the others, unless `all_labels`. What else has one entry
    per example is repeated. Source: Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", IJCAI 2021,
    section 3.1 (the joint task).
    """

    all_labels: bool = False

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images, labels = pixels(batch, "Rotations"), batch.get("labels")
        if images.shape[2] != images.shape[3]:
            raise UsageError(f"Rotations: images of {images.shape[2]}x{images.shape[3]} are not square")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
            raise UsageError("Rotations needs batch['labels'], one class number per image")
        count = len(images)
        out = {
            name: torch.cat([value] * 4) if isinstance(value, Tensor) and value.dim() and len(value) == count else value
            for name, value in batch.items()
        }
        out["pixel_values"] = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
        known = labels >= 0
        joint = [torch.where(known, 4 * labels + turns, labels) for turns in range(4)]
        out["joint_labels"] = torch.cat(joint)
        if not self.all_labels:
            out["labels"] = torch.cat([labels, torch.full_like(labels.repeat(3), -100)])
        return out


@dataclass(frozen=True)
class Translated:
    """Every image moved by so many pixels down and to the right; what leaves on one side comes in on the other."""

    down: int = 2
    right: int = 2

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        moved = torch.roll(pixels(batch, "Translated"), (self.down, self.right), (2, 3))
        return {**batch, "pixel_values": moved}


@dataclass(frozen=True)
class Turned:
    """Every image turned by `degrees` about its centre (bilinear; what lies outside is the value of the nearest pixel)."""

    degrees: float

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = pixels(batch, "Turned")
        angle = math.radians(self.degrees)
        turn = images.new_tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        grid = torch.nn.functional.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        turned = torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return {**batch, "pixel_values": turned}


@dataclass(frozen=True)
class PermutedPatches:
    """The patches of every image in another order, the same for all images; the order is drawn from `seed` and is never the given one.

    A disturbance that leaves every patch as it is and destroys how they lie. Raises UsageError for images that patches of `patch` do not
    fill, or a single patch.
    """

    patch: int
    seed: int = 0

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        images = pixels(batch, "PermutedPatches")
        count, channels, height, width = images.shape
        if height % self.patch or width % self.patch or height * width <= self.patch**2:
            raise UsageError(
                f"PermutedPatches: patches of {self.patch} do not divide images of {height}x{width} into several"
            )
        shape = (count, channels, height // self.patch, self.patch, width // self.patch, self.patch)
        cut = images.reshape(shape).permute(2, 4, 0, 1, 3, 5).flatten(0, 1)
        draws, same = torch.Generator().manual_seed(self.seed), torch.arange(len(cut))
        order = same
        while torch.equal(order, same):
            order = torch.randperm(len(cut), generator=draws)
        mixed = cut[order.to(cut.device)].unflatten(0, shape[2:5:2]).permute(2, 3, 0, 4, 1, 5)
        return {**batch, "pixel_values": mixed.reshape(images.shape)}
