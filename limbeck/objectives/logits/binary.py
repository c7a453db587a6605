"""Outputs that are yes-or-no questions of their own, answered softly by a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from limbeck.objectives import positions
from limbeck.objectives.checks import require_positive
from limbeck.objectives.logits.targets import TeacherTargets


@dataclass(frozen=True)
class BinaryTargets(TeacherTargets):
    """Soft binary targets: every output is a question that is answered yes or no, several may be yes at once.

    L = T^2 mean over positions of 1/Q sum_k [ -p_k log q_k - (1 - p_k) log(1 - q_k) ],   p, q = sigmoid(z / T) of teacher and student

    Where `SoftTargets` compares one distribution over classes, this compares Q of them over two answers each: attributes that an
    annotator wrote down (`limbeck.teachers.Annotations`), the classes of a detector. A logit is log p / (1 - p); of a teacher with one logit for
    yes and one for no it is their difference. A student's answers to questions come from a head of their own, which training throws away:

        CrossEntropy() + 4.0 * AtExit("fc:input", BinaryTargets(), teacher="aspects")

    Shapes: logits (B, Q) or (B, L, Q), also of a single question. Computed in float32. An agreeing student still pays the teacher's entropy.
    Source: Lee et al., "Multi-aspect Knowledge Distillation with Large Language Model", 2025 (MaKD), weight 4, T = 1; the authors' code has
    the same mean over batch and questions, no T^2, and so agrees for T = 1.
    """

    temperature: float = 1.0

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        own, target = (positions.precise(z) / self.temperature for z in (student, teacher))
        losses = F.binary_cross_entropy_with_logits(own, target.sigmoid(), reduction="none")
        return self.temperature**2 * losses.mean(-1)
