"""Objectives on the primary output: hard labels and the teacher's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_classes, require_positive
from limbeck.signals import LOGITS, Reads, Signals


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Cross-entropy with the true labels: the task's own loss for classifiers and language models.

    L = mean over positions of -(1 - s) log p_y - s / C sum_i log p_i,   p = softmax(logits), s = label_smoothing

    Shapes: student logits (B, C) with labels (B,), or (B, L, C) with aligned labels (B, L): labels[b, i] is what
    position i has to predict. Labels may also be probabilities of the logits' shape, as mixup makes them. Positions
    whose label is `ignore_index` or whose `attention_mask` is 0 do not count; `sample_weight` (B,) weights examples,
    L = sum w l / sum w.

    Raises UsageError for labels that would broadcast or are no class of the student.
    """

    label_smoothing: float = 0.0
    ignore_index: int = positions.IGNORED

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"CrossEntropy: label_smoothing={self.label_smoothing!r} must be in [0, 1)")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        logits, labels = student.logits, batch.get("labels")
        require_classes(self, logits)
        if labels is None:
            raise UsageError(f"CrossEntropy needs batch['labels']; the batch has {sorted(batch)}")
        soft = labels.is_floating_point()
        expected = tuple(logits.shape if soft else logits.shape[:-1])
        if tuple(labels.shape) != expected:
            raise UsageError(
                f"CrossEntropy: labels of shape {tuple(labels.shape)} ({labels.dtype}) do not fit logits of shape "
                f"{tuple(logits.shape)}: they must be class indices {tuple(logits.shape[:-1])} or probabilities "
                f"{tuple(logits.shape)}"
            )
        weights = positions.weights(batch, logits.shape[:-1], ignore_index=self.ignore_index)
        if not soft:
            ignored = labels == self.ignore_index
            labels = labels.long().masked_fill(ignored, 0)
            if (
                labels.device.type == "cpu"
                and labels.numel()
                and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]
            ):
                wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
                raise UsageError(
                    f"CrossEntropy: label {wrong} is no class of a student with {logits.shape[-1]} classes "
                    f"(0 to {logits.shape[-1] - 1}, or {self.ignore_index} to ignore a position)"
                )
        log_q = divergences.log_probabilities(positions.blank(logits, weights))
        target = positions.blank(labels.to(log_q.dtype), weights) if soft else labels
        return positions.mean(divergences.cross_entropy(log_q, target, self.label_smoothing), weights)


@dataclass(frozen=True, kw_only=True)
class TeacherTargets(Objective):
    """Base of objectives that compare the student's primary output with the teacher's, position by position.

    classes: the teacher's class for each of the student's classes, for a student that knows only some of them; None
    when both have the same classes. positions: "labelled" counts what is neither padding nor labelled -100; "all" counts
    unlabelled examples and tokens too (padding never counts).
    """

    classes: tuple[int, ...] | None = None
    positions: str = "labelled"

    def __post_init__(self) -> None:
        require_choice(self, "positions", self.positions, ("labelled", "all"))
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2 or min(self.classes) < 0:
                raise UsageError(f"{self.name}: classes must be two or more different class indices of the teacher")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}), teacher=frozenset({LOGITS}))

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of each position: logits (..., C) of both to (...)."""
        raise NotImplementedError

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        return positions.mean(self.compare(own, target), weights)

    def aligned(self, own: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Both logits (..., C) in the student's classes, blank where a position does not count, and the weights (...).

        Raises UsageError for shapes that do not fit.
        """
        if self.classes is not None:
            if max(self.classes) >= target.shape[-1]:
                raise UsageError(f"{self.name}: classes names {max(self.classes)}; the teacher has {target.shape[-1]}")
            target = target[..., torch.tensor(self.classes, device=target.device)]
        if own.shape != target.shape:
            raise UsageError(self._mismatch(own, target))
        require_classes(self, own)
        weights = positions.weights(batch, own.shape[:-1], labels=self.positions == "labelled")
        return positions.blank(own, weights), positions.blank(target, weights), weights

    def _mismatch(self, own: Tensor, target: Tensor) -> str:
        if own.shape[:-1] == target.shape[:-1]:
            return (
                f"{self.name}: the student has {own.shape[-1]} classes and the teacher {target.shape[-1]}. Give both the "
                "same classes, or name the teacher's class for each of the student's: classes=(...)"
            )
        return (
            f"{self.name}: the student's output has the shape {tuple(own.shape)} and the teacher's "
            f"{tuple(target.shape)}; their positions must be the same"
        )


@dataclass(frozen=True)
class SoftTargets(TeacherTargets):
    """Soft targets: learn the teacher's distribution, softened by a temperature that shows how it ranks wrong classes.

    L = T^2 mean over positions of KL(softmax(z_t / T) || softmax(z_s / T))

    The factor T^2 keeps the gradient's size independent of T. Shapes: logits (B, C) or (B, L, C). Computed in float32.
    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    Deviation: the KL divergence, not the cross-entropy: the same gradient, and 0 for a perfect student.
    """

    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p = divergences.log_probabilities(teacher, self.temperature)
        log_q = divergences.log_probabilities(student, self.temperature)
        return self.temperature**2 * divergences.kl_divergence(log_p, log_q)


@dataclass(frozen=True)
class MeanSquaredError(TeacherTargets):
    """Regression of the teacher's logits, before the softmax.

    L = mean over positions of 1/C sum_i (z_s,i - z_t,i)^2

    Shapes: logits (B, C) or (B, L, C). Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014, eq. 1.
    Deviation: the paper has half the sum over classes; this is 2 / C of it, so that the weight does not depend on C.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return divergences.mean_squared_error(student, teacher)
