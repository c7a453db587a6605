"""Proxies: how good a student may become, told from its architecture before any training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.signals import LOGITS, Tap


def gaussian_(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every weight of convolutions and linear layers from N(0, 1), biases 0, scales of normalizations 1; in place."""
    with torch.no_grad():
        for module in model.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, Tensor):
                drawn = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
                weight.copy_(torch.randn(weight.shape, generator=generator) if drawn else torch.ones_like(weight))
            if isinstance(bias, Tensor):
                bias.zero_()
    return model


def channel_correlations(gradient: Tensor) -> Tensor:
    """Per class, how the channels of its gradient go together: (C, D) -> (C, D, D), the outer products, rows of length 1."""
    return F.normalize(gradient.unsqueeze(2) * gradient.unsqueeze(1), dim=-1)


def semantic_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / (C D) sum of squared differences of the channel correlations of two gradients (C, D)."""
    classes, width = student.shape
    return (channel_correlations(student) - channel_correlations(teacher)).square().sum() / (classes * width)


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B^2 sum of squared differences of the Gram matrices of features (B, D), (B, D'), rows of length 1."""
    own, target = (F.normalize(features @ features.T, dim=-1) for features in (student, teacher))
    return (own - target).square().sum() / len(own) ** 2


@dataclass(frozen=True)
class TeacherSimilarity:
    """How alike student and teacher see a batch when both have random weights: higher promises more from distillation.

    score = -(semantic distance + relation distance)

    semantic: of the gradients of the classifier's weight under the labels' cross-entropy, which tell what channels mean for
    each class (`semantic_distance`); needs the same number of channels D before both classifiers. relation: of how the
    examples lie to each other in the features before the classifier (`relation_distance`). Either may be left out.
    classifier: path of the last linear layer, "fc" in limbeck's convolutional networks, one for each side.

    `score` draws its own weights into copies: the models stay as they are. Source: Dong, Li and Wei, "DisWOT: Student
    Architecture Search for Distillation WithOut Training", CVPR 2023, eq. 4 to 7. The authors' released search has the
    semantic term only, and its relation score sees one example; here both are as the paper has them.
    """

    semantic: bool = True
    relation: bool = True
    student_classifier: str = "fc"
    teacher_classifier: str = "fc"

    def __post_init__(self) -> None:
        if not (self.semantic or self.relation):
            raise UsageError("TeacherSimilarity: semantic and relation are both off: there is nothing to compare")

    def score(self, student: nn.Module, teacher: nn.Module, batch: Mapping[str, Any], seed: int = 0) -> float:
        """The score on one batch with labels. Raises UsageError where the widths differ and the semantic term needs them."""
        sides = ((student, self.student_classifier), (teacher, self.teacher_classifier))
        (own, own_gradient), (target, target_gradient) = (self._seen(*side, batch, seed) for side in sides)
        total = own.new_zeros(())
        if self.semantic:
            if own_gradient.shape != target_gradient.shape:
                raise UsageError(
                    f"TeacherSimilarity: the classifiers are {tuple(own_gradient.shape)} and {tuple(target_gradient.shape)}; "
                    "the semantic term needs the same (classes, width): change the student's last width, or semantic=False"
                )
            total = total + semantic_distance(own_gradient, target_gradient)
        if self.relation:
            total = total + relation_distance(own, target)
        return -float(total)

    def _seen(self, model: nn.Module, path: str, batch: Mapping[str, Any], seed: int) -> tuple[Tensor, Tensor]:
        """Features before the classifier (B, D) and the gradient of its weight (C, D), in train mode with random weights."""
        model = gaussian_(copy.deepcopy(model), torch.Generator().manual_seed(seed)).train().requires_grad_(False)
        weight = model.get_submodule(path).weight.requires_grad_(True)
        with Tap(model, {LOGITS, f"{path}:input"}) as tap:
            signals = tap(batch)
        loss = F.cross_entropy(signals.logits.float(), batch["labels"])
        (gradient,) = torch.autograd.grad(loss, weight)
        return signals[f"{path}:input"].detach().float(), gradient
