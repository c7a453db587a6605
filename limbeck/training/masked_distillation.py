"""Distilled masked images: a student that draws hidden patches also learns what a teacher holds of the visible ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.models.vit import VisiblePatches, ViT
from limbeck.objectives.base import Loss, Objective
from limbeck.signals import LOGITS, Tap, model_inputs
from limbeck.teachers.frozen import FrozenTeacher
from limbeck.training.masked_images import MaskedImages
from limbeck.training.procedures import Distil, Losses, State, describe, describe_teacher, tell


class DistilMaskedImages(MaskedImages):
    """A masked autoencoder that is distilled: student and teacher see the same few patches of each image.

    L = reconstruction * (mean over hidden patches of mean over pixels of (drawn - pixels)^2) + objective(h_s, h_t)

    h_s, h_t: signals of `limbeck.models.vit.VisiblePatches`, such as "model.blocks.3": (B, 1 + visible, width), class token first. The
    teacher runs on the visible tokens alone, and no further than the deepest signal that the objective reads, so that it costs a small
    part of its own forward pass; with reconstruction=0 there is no decoding either.

    encoder: the student, a `limbeck.models.vit`, trained in place. teacher: a vit of the same images and patches, frozen; its depth and
    width are free. objective: any that reads hidden states of both, such as `Hint("model.blocks.2", "model.blocks.4", loss="l1",
    normalize=True, projector="linear")`, which is the paper's; its connectors are trained with the student, as "connector.NAME".
    reconstruction: the weight of the pixels. Everything else as in `MaskedImages`.

    Raises UsageError for a teacher of other patches, for an objective that reads logits or nothing, and for a negative weight.
    Source: Bai et al., "Masked Autoencoders Enable Efficient Knowledge Distillers", CVPR 2023, section 3 (both weights 1; layers at three
    quarters of either depth; one linear projector). The authors' code agrees, scales both features to length 1, and runs the whole
    teacher and its decoder without using them.
    """

    def __init__(self, encoder: ViT, teacher: ViT, objective: Objective, *, reconstruction: float = 1.0, **masked: Any):
        super().__init__(encoder, **masked)
        if isinstance(reconstruction, bool) or not 0 <= reconstruction < math.inf:
            raise UsageError(
                f"DistilMaskedImages: reconstruction={reconstruction!r} must be a finite weight, 0 or more"
            )
        if not isinstance(objective, Objective) or not objective.reads.student or not objective.reads.teacher:
            raise UsageError("DistilMaskedImages: objective must read hidden states of both sides, such as Hint")
        if LOGITS in objective.reads.student | objective.reads.teacher:
            raise UsageError(
                "DistilMaskedImages: a few patches have no logits: name hidden states such as 'model.blocks.2'"
            )
        if not isinstance(teacher, ViT) or _patches(teacher) != _patches(encoder):
            raise UsageError(
                "DistilMaskedImages: the teacher must be a limbeck.models.vit of the same images and patches"
            )
        if teacher is encoder:
            raise UsageError("teacher and student are the same module: copy one of them (copy.deepcopy) first")
        self.objective, self.weighted = objective, float(reconstruction)
        self.teacher = FrozenTeacher(VisiblePatches(teacher), partial=True)
        self.connectors: dict[str, nn.Module] = {}
        if not self.weighted:
            del self.modules["decoder"]

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        super().prepare(batch, device)
        helper = Distil(self.seen, self.teacher, self.objective)
        helper.prepare(self._shown(batch), device)
        self.connectors = helper.connectors
        self.modules |= {f"connector.{name}": module for name, module in self.connectors.items()}

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        seen = self._shown(batch)
        teacher = self.teacher.signals(seen, self.objective.reads.teacher)
        names = self.objective.reads.student | (frozenset({LOGITS}) if self.weighted else frozenset())
        with Tap(self.seen, names, partial=True) as tap:
            student = tap(seen)
        learnt = self.objective(student, teacher, seen, self.connectors)
        if not self.weighted:
            return {"main": learnt}
        value = self.reconstruction(self.decoded(student.logits, seen["shown"]), seen["shown"], seen)
        parts = {"reconstruction": value.detach(), **learnt.parts}
        return {"main": Loss(self.weighted * value + learnt.value, parts)}

    def after_step(self, state: State) -> None:
        tell(self.connectors.values(), state)

    def _shown(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """What both see: the images, the patches that are shown, and what tells the examples' weights."""
        pixel_values = model_inputs(self.encoder, batch)["pixel_values"]
        kept = {name: batch[name] for name in ("sample_weight", "index", "epoch") if name in batch}
        return {"pixel_values": pixel_values, "shown": self.draw(pixel_values), **kept}

    def describe(self) -> Any:
        found = {"objective": describe(self.objective), "teacher": describe_teacher(self.teacher)}
        return super().describe() | found | {"reconstruction": self.weighted}


def _patches(model: ViT) -> tuple[Any, ...]:
    return model.size, model.patches.kernel_size, model.patches.in_channels
