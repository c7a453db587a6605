"""Objectives on standardized logits: relations among the logits of a position count, their size does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives import positions
from limbeck.objectives.adapters import Adapter
from limbeck.objectives.base import Batch, Connectors, Objective, Sum
from limbeck.objectives.logits.targets import SoftTargets
from limbeck.signals import Signals


def standardized(logits: Tensor) -> Tensor:
    """(z - mean z) / std z over the last axis, with the population deviation, float32; zeros where all are equal."""
    z = positions.precise(logits)
    z = z - z.mean(-1, keepdim=True)
    scale = (
        z.abs().amax(-1, keepdim=True).detach().clamp_min(torch.finfo(z.dtype).tiny)
    )  # squares neither overflow nor vanish
    z = z / scale
    deviation = z.square().mean(-1, keepdim=True)
    return z * torch.where(deviation > 0, deviation, torch.ones_like(deviation)).rsqrt()


@dataclass(frozen=True)
class StandardizedTargets(SoftTargets):
    """Soft targets on standardized logits: the student has to match the relations among the teacher's logits, not their size.

    L = T^2 mean over positions of KL(softmax(Z(z_t) / T) || softmax(Z(z_s) / T)),   Z(z) = (z - mean z) / std z

    mean and (population) std are over the classes of a position; a constant row stays constant. Adding to or scaling the student's logits
    changes nothing, so it is used beside `CrossEntropy`. Shapes: logits (B, C) or (B, L, C). T is the paper's base temperature, 2.
    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. Deviation: the authors' code divides by
    the unbiased deviation plus 1e-7.
    """

    temperature: float = 2.0

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return super().compare(standardized(student), standardized(teacher))


@dataclass(frozen=True)
class Standardized(Adapter):
    """Any objective on logits, applied to standardized logits of student and teacher: both are compared at the same spread.

    L = objective(Z(z_s), Z(z_t), batch),   Z(z) = (z - mean z) / std z over the classes of a position

    A temperature that each example sets by itself: its deviation. With `0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=1.0)` it is
    the rescaled loss that goes with mixup, where a student's own size of logits would say how much it was mixed. The deviation carries
    gradient. `StandardizedTargets(T)` is `Standardized(SoftTargets(temperature=T))`.

    objective: one that reads the student's and the teacher's logits alone, or a sum of such. Shapes: logits (B, C) or (B, L, C).
    Raises UsageError for another objective.
    Source: Choi et al., "Understanding the Role of Mixup in Knowledge Distillation: An Empirical Study", WACV 2023. Deviations: the
    population's deviation (the authors' code, which agrees otherwise, has the sample's); the mean, which no softmax sees, is taken off too.
    """

    objective: Objective

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        terms = self.objective.terms if isinstance(self.objective, Sum) else ((self.objective, 1.0),)
        labelled = all(getattr(term, "positions", "labelled") == "labelled" for term, _ in terms)

        def rescaled(logits: Tensor) -> Tensor:
            weights = positions.weights(batch, logits.shape[:-1], labelled)
            return standardized(positions.blank(logits, weights))

        known = {name: rescaled(teacher[name]) for name in self.reads.teacher}
        return self.inner(rescaled(student.logits), Signals(known), batch)
