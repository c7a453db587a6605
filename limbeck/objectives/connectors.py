"""Connectors: how a student's feature is brought to the layout, the size and the width of a teacher's.

Features are vectors (B, D), sequences (B, L, D) or maps (B, C, H, W). Layout and size are matched without parameters; a
width that differs needs a learnable projector, which is trained with the student and thrown away afterwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch

LAYOUTS = {2: "vectors (B, D)", 3: "sequences (B, L, D)", 4: "maps (B, C, H, W)"}
PROJECTORS = ("auto", "none", "linear", "convolution")
RESIZINGS = ("pool", "interpolate")


def width(feature: Tensor) -> int:
    """The number of channels of a map, or of features of a vector or a sequence."""
    return feature.shape[1] if feature.dim() == 4 else feature.shape[-1]


def projector(student: Tensor, teacher: Tensor, kind: str = "auto") -> nn.Module | None:
    """A learnable map from the student's width to the teacher's, for two features of the same layout; None for identity.

    "auto": nothing where the widths agree, else a 1x1 convolution (maps) or a linear layer. "none": nothing, and a
    UsageError where the widths differ. "linear" and "convolution": always that one.
    """
    own, target, is_map = width(student), width(teacher), student.dim() == 4
    if kind == "none" and own != target:
        raise UsageError(
            f"the student's feature has the width {own} and the teacher's {target}: use projector='auto', or other modules"
        )
    if kind == "none" or (kind == "auto" and own == target):
        return None
    if kind == ("linear" if is_map else "convolution"):
        fitting = "convolution" if is_map else "linear"
        raise UsageError(f"projector={kind!r} does not fit {LAYOUTS[student.dim()]}: use {fitting!r} or 'auto'")
    made = nn.Conv2d(own, target, kernel_size=1) if is_map else nn.Linear(own, target)
    return made.to(student.device)


class AttentionFusion(nn.Module):
    """A map fused with one from a deeper layer by learned attention over places, and its projection to a teacher's width.

    x' = BN(conv1x1(x));  z = sigmoid(conv1x1([x', y]));  F = z_1 x' + z_2 y (y resized to x);  out = BN(conv3x3(F))

    `forward(x, y, size)`: x (B, channels, H, W), y (B, width, h, w) or None where `fuses` is False, size: of the teacher's map;
    returns out (B, outputs, *size) and F (B, width, *size), which the next shallower layer takes as y.
    Source: Chen et al., "Distilling Knowledge via Knowledge Review", 2021, section 3 (attention based fusion); the authors' code agrees.
    """

    def __init__(self, channels: int, width: int, outputs: int, fuses: bool = True):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.outer = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        for layer in (self.inner[0], self.outer[0]):
            nn.init.kaiming_uniform_(layer.weight, a=1)

    def forward(self, x: Tensor, below: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        fused = self.inner(x)
        if self.attention is not None:
            below = F.interpolate(below, tuple(fused.shape[2:]))
            shares = self.attention(torch.cat([fused, below], 1)).sigmoid()
            fused = fused * shares[:, :1] + below * shares[:, 1:]
        if tuple(fused.shape[2:]) != size:
            fused = F.interpolate(fused, size)
        return self.outer(fused), fused


def project(connector: nn.Module | None, feature: Tensor) -> Tensor:
    """The feature in float32 (float64 stays) through its projector."""
    if connector is None:
        return positions.precise(feature)
    return positions.precise(connector(feature.to(next(connector.parameters()).dtype)))


def match(student: Tensor, teacher: Tensor, batch: Batch, resizing: str = "pool") -> tuple[Tensor, Tensor]:
    """Bring two features to one layout and size, whatever their widths.

    A map or a sequence beside a vector is averaged over its positions (those that count). Tokens beside a map become a map:
    their number, or their number without a first class token, must be a square. Maps of two sizes: "pool" averages both
    to the smaller height and width, "interpolate" resizes the student's to the teacher's (bilinear).
    Raises UsageError for other layouts, and for sequences of two lengths.
    """
    for owner, feature in (("student", student), ("teacher", teacher)):
        if feature.dim() not in LAYOUTS:
            raise UsageError(
                f"the {owner}'s feature has the shape {tuple(feature.shape)}; it must be one of: "
                + ", ".join(LAYOUTS.values())
            )
    if student.shape[0] != teacher.shape[0]:
        raise UsageError(f"the student's feature has {student.shape[0]} examples and the teacher's {teacher.shape[0]}")
    layouts = {student.dim(), teacher.dim()}
    if 2 in layouts:
        return pool(student, batch), pool(teacher, batch)
    if layouts == {3}:
        if student.shape[1] != teacher.shape[1]:
            raise UsageError(
                f"the student's sequence has the length {student.shape[1]} and the teacher's {teacher.shape[1]}: their "
                "tokens must be the same"
            )
        return student, teacher
    return _resize(_to_map(student), _to_map(teacher), resizing)


def pool(feature: Tensor, batch: Batch) -> Tensor:
    """A feature as vectors (B, D): the mean over a map's places or over a sequence's attended tokens."""
    if feature.dim() == 2:
        return feature
    if feature.dim() == 4:
        return positions.precise(feature).mean(dim=(2, 3))
    mask = batch.get("attention_mask")
    if mask is None:
        return positions.precise(feature).mean(dim=1)
    counts = positions.weights({"attention_mask": mask}, feature.shape[:2])
    total = (positions.precise(positions.blank(feature, counts)) * counts.unsqueeze(-1)).sum(dim=1)
    return total / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _to_map(feature: Tensor) -> Tensor:
    if feature.dim() == 4:
        return feature
    length = feature.shape[1]
    for skipped in (0, 1):
        side = math.isqrt(length - skipped)
        if side and side * side == length - skipped:
            return feature[:, skipped:].transpose(1, 2).unflatten(2, (side, side))
    raise UsageError(f"{length} tokens beside a map: neither {length} nor {length - 1} is a square number of places")


def _resize(student: Tensor, teacher: Tensor, resizing: str) -> tuple[Tensor, Tensor]:
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    if resizing == "interpolate":
        size = tuple(teacher.shape[2:])
        return F.interpolate(positions.precise(student), size=size, mode="bilinear", align_corners=False), teacher
    size = tuple(torch.minimum(torch.tensor(student.shape[2:]), torch.tensor(teacher.shape[2:])).tolist())
    return tuple(F.adaptive_avg_pool2d(positions.precise(feature), size) for feature in (student, teacher))
