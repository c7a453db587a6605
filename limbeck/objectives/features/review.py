"""Knowledge review: the student's deeper layers help its shallower ones to imitate the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_connectors, require_whole, signal_layers
from limbeck.objectives.connectors import AttentionFusion
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class ReviewHints(Objective):
    """ReviewKD: from the deepest layer back, each layer is fused with what was learnt below it and imitates the teacher's.

    F_n = fuse(s_n),  F_i = fuse(s_i, F_(i+1));   L = mean over examples of sum over layers i of HCL(out(F_i), t_i)
    HCL(x, y) = sum_k 2^-k mse(pool_k(x), pool_k(y)) / sum_k 2^-k,   pool_0 = identity, then 4x4, 2x2, 1x1 where that is smaller

    fuse is an attention map over places that mixes the layer with what came from below, of `width` channels, and out a 3x3
    convolution to the teacher's width: connectors (`limbeck.objectives.connectors.AttentionFusion`), one per layer.

    student, teacher: layers from the input on; None: the same names. width: None: the deepest layer's of the student, at most
    512. Shapes: maps (B, C, H, W), or vectors (B, D) as maps of one place (the pooled features as the last layer, as in the
    paper); sizes and widths may differ. Examples of weight 0 are gone before batch normalization.
    Source: Chen et al., "Distilling Knowledge via Knowledge Review", 2021, section 3 (weights 0.6 to 8 beside labels,
    growing over 20 epochs). The authors' code agrees.
    """

    student: Sequence[str]
    teacher: Sequence[str] | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "student", signal_layers(self, "student", self.student))
        if self.teacher is not None:
            object.__setattr__(self, "teacher", signal_layers(self, "teacher", self.teacher))
            if len(self.teacher) != len(self.student):
                raise UsageError(
                    f"{self.name}: {len(self.student)} layers of the student, {len(self.teacher)} of the teacher"
                )
        if self.width is not None:
            require_whole(self, "width", self.width)

    @property
    def reads(self) -> Reads:
        return Reads(frozenset(self.student), frozenset(self.teacher or self.student))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        own, target = self._maps(student, teacher)
        width = self.width or min(512, own[-1].shape[1])
        deepest = len(own) - 1
        return {
            f"fusion{i}": AttentionFusion(s.shape[1], width, t.shape[1], fuses=i < deepest).to(s.device)
            for i, (s, t) in enumerate(zip(own, target))
        }

    def _maps(self, student: Signals, teacher: Signals) -> tuple[list[Tensor], list[Tensor]]:
        found = (
            [student[name] for name in self.student],
            [teacher[name].detach() for name in self.teacher or self.student],
        )
        for feature in (*found[0], *found[1]):
            if feature.dim() not in (2, 4):
                raise UsageError(
                    f"{self.name} reviews maps (B, C, H, W) and vectors (B, D), not {tuple(feature.shape)}"
                )
        return tuple([x[:, :, None, None] if x.dim() == 2 else x for x in side] for side in found)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = self._maps(student, teacher)
        require_connectors(self, connectors, *(f"fusion{i}" for i in range(len(own))))
        *kept, weights = positions.present(batch, *own, *target)
        own, target = kept[: len(own)], kept[len(own) :]
        if not len(own[0]):
            return sum(positions.precise(x).sum() * 0 for x in own)
        total, below = 0.0, None
        with torch.autocast(own[0].device.type, enabled=False):
            for i in reversed(range(len(own))):
                imitated, below = connectors[f"fusion{i}"](positions.precise(own[i]), below, tuple(target[i].shape[2:]))
                total = total + hierarchical_distance(positions.precise(imitated), positions.precise(target[i]))
        return positions.mean(total, weights)


def hierarchical_distance(x: Tensor, y: Tensor) -> Tensor:
    """HCL of `ReviewHints`: (B, C, H, W) of both to (B,)."""
    total, mass = (x - y).square().mean((1, 2, 3)), 1.0
    share = 1.0
    for size in (4, 2, 1):
        if size >= x.shape[2]:
            continue
        share /= 2
        pooled = (F.adaptive_avg_pool2d(feature, size) for feature in (x, y))
        a, b = pooled
        total, mass = total + share * (a - b).square().mean((1, 2, 3)), mass + share
    return total / mass
