"""Objectives on the primary output: hard labels and the teacher's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_classes, require_labels, require_positive
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
        logits = student.logits
        require_classes(self, logits)
        labels = require_labels(self, batch, logits, self.ignore_index)
        weights = positions.weights(batch, logits.shape[:-1], ignore_index=self.ignore_index)
        log_q = divergences.log_probabilities(positions.blank(logits, weights))
        soft = labels.is_floating_point()
        target = positions.blank(labels.to(log_q.dtype), weights) if soft else labels
        return positions.mean(divergences.cross_entropy(log_q, target, self.label_smoothing), weights)


@dataclass(frozen=True, kw_only=True)
class TeacherTargets(Objective):
    """Base of objectives that compare the student's primary output with the teacher's, position by position.

    classes: the teacher's class for each of the student's classes, for a student that knows only some of them; None
    when both have the same classes. student_classes: the student's class for each of the teacher's classes, for a student
    that has learned more of them; only these logits of the student are compared.
    positions: "labelled" counts what is neither padding nor labelled -100; "all" counts unlabelled examples and tokens too
    (padding never counts).
    """

    classes: tuple[int, ...] | None = None
    positions: str = "labelled"
    student_classes: tuple[int, ...] | None = None

    least: ClassVar[int] = 2  # how many outputs it needs

    def __post_init__(self) -> None:
        require_choice(self, "positions", self.positions, ("labelled", "all"))
        for field, whose in (("classes", "teacher"), ("student_classes", "student")):
            chosen = getattr(self, field)
            if chosen is not None:
                object.__setattr__(self, field, tuple(chosen))
                if len(set(chosen)) != len(chosen) or len(chosen) < 2 or min(chosen) < 0:
                    raise UsageError(f"{self.name}: {field} must be two or more different class indices of the {whose}")

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
        """Both logits (..., C) in the classes they share, blank where a position does not count, and the weights (...).

        Raises UsageError for shapes that do not fit.
        """
        target = self._chosen("classes", target, "teacher")
        own = self._chosen("student_classes", own, "student")
        if own.shape != target.shape:
            raise UsageError(self._mismatch(own, target))
        require_classes(self, own, self.least)
        weights = positions.weights(batch, own.shape[:-1], labels=self.positions == "labelled")
        return positions.blank(own, weights), positions.blank(target, weights), weights

    def _chosen(self, field: str, logits: Tensor, whose: str) -> Tensor:
        chosen = getattr(self, field)
        if chosen is None:
            return logits
        if max(chosen) >= logits.shape[-1]:
            raise UsageError(f"{self.name}: {field} names {max(chosen)}; the {whose} has {logits.shape[-1]}")
        return logits[..., torch.tensor(chosen, device=logits.device)]

    def _mismatch(self, own: Tensor, target: Tensor) -> str:
        if own.shape[:-1] == target.shape[:-1]:
            return (
                f"{self.name}: the student has {own.shape[-1]} classes and the teacher {target.shape[-1]}. Give both the "
                "same classes, or name the teacher's class for each of the student's: classes=(...), or the student's for each "
                "of the teacher's: student_classes=(...); MappedClasses maps label sets, MappedTokens and SortedTargets vocabularies"
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
class HardTargets(TeacherTargets):
    """Hard distillation: cross-entropy with the teacher's most likely class, the classes weighted where asked.

    L = sum_n w_{c_n} (-log s_{n,c_n}) / sum_n w_{c_n},   c_n = argmax_c t_{n,c},   s: softmax of the student

    weights: of the classes (C,), such as `limbeck.datasets.imbalance.class_balanced_weights`; None: all 1. No true label enters;
    positions="all" counts unlabelled examples too. Shapes: logits (B, C) or (B, L, C).
    Source: Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT), ICML 2021, eq. 3,
    for a distillation head; with weights Rangwani et al., "DeiT-LT", CVPR 2024, whose authors' code has the same mean.
    """

    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if len(self.weights) < 2 or not all(math.isfinite(w) and w > 0 for w in self.weights):
                raise UsageError(f"HardTargets: weights={self.weights!r} must be positive numbers, one per class")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, counted = self.aligned(student.logits, teacher.logits.detach(), batch)
        chosen = target.argmax(-1)
        losses = divergences.cross_entropy(divergences.log_probabilities(own), chosen)
        if self.weights is not None:
            if len(self.weights) != own.shape[-1]:
                raise UsageError(f"HardTargets: {len(self.weights)} weights for {own.shape[-1]} classes")
            by_class = losses.new_tensor(self.weights)[chosen]
            counted = by_class if counted is None else counted * by_class
        return positions.mean(losses, counted)


@dataclass(frozen=True)
class BalancedDivergence(TeacherTargets):
    """Forward and reverse KL together; which of them weighs more is decided example by example, by who is surer.

    L = T^2 mean over positions of f KL(t || s) + r KL(s || t),   t, s = softmax(z / T)
    f = forward * (delta where H(s) < H(t), else 1),   r = reverse * (delta where H(s) > H(t), else 1)

    Forward KL makes the student cover all that the teacher holds possible, reverse KL makes it settle on the teacher's peak. So a
    student that is surer than its teacher is told to spread, a less sure one to decide: confidence moves to the teacher's. H:
    entropy at temperature T; the weights carry no gradient. delta 1 is a fixed mixture (`SymmetricKL`).

    overconfident: the side that delta raises where the student is surer, "forward" or "reverse"; the other is raised elsewhere.
    Shapes: logits (B, C) or (B, L, C).
    Source: Amara et al., "BD-KD: Balancing the Divergences for Online Knowledge Distillation", 2022. No public source that could
    be read says which side delta raises: the default follows from the stated aim, calibrated confidence; the field is the other.
    """

    forward: float = 1.0
    reverse: float = 1.0
    delta: float = 2.0
    temperature: float = 4.0
    overconfident: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("forward", "reverse", "delta", "temperature"):
            require_positive(self, name, getattr(self, name))
        require_choice(self, "overconfident", self.overconfident, ("forward", "reverse"))

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p = divergences.log_probabilities(teacher, self.temperature)
        log_q = divergences.log_probabilities(student, self.temperature)
        gap = divergences.entropy(log_p) - divergences.entropy(log_q.detach())  # above 0: the student is surer
        surer = gap if self.overconfident == "forward" else -gap
        forward = self.forward * torch.where(surer > 0, self.delta, 1.0) * divergences.kl_divergence(log_p, log_q)
        reverse = self.reverse * torch.where(surer < 0, self.delta, 1.0) * divergences.kl_divergence(log_q, log_p)
        return self.temperature**2 * (forward + reverse)


@dataclass(frozen=True)
class MixedTargets(TeacherTargets):
    """Cross-entropy with a mixture of the label and the teacher's distribution, whose share may grow with the epochs.

    L = mean over positions of -sum_i ((1 - a) y_i + a t_i) log s_i,   a = share min(1, (epoch + 1) / epochs)

    t, s: softmax of teacher and student; y: the label, one-hot or probabilities. epochs: over how many the share grows in
    equal parts; None: it is constant. It takes the place of the cross-entropy and needs no weight.

    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L) or of the logits' shape; `batch["epoch"]` where epochs is given.
    Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, eq. 3 and 8, whose share
    is 0.8 and whose teacher is the student's past (`limbeck.teachers.PastPredictions`). Deviation: none.
    """

    share: float = 0.8
    epochs: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "share", self.share)
        if self.share > 1:
            raise UsageError(f"MixedTargets: share={self.share!r} must be at most 1")
        if self.epochs is not None:
            require_positive(self, "epochs", self.epochs)
        if self.positions != "labelled":
            raise UsageError(f"MixedTargets: positions={self.positions!r}: it needs labels: 'labelled'")

    def share_at(self, batch: Batch) -> float:
        """The teacher's share for this batch. Raises UsageError for a growing share without batch["epoch"]."""
        if self.epochs is None:
            return self.share
        if batch.get("epoch") is None:
            raise UsageError(
                f"MixedTargets(epochs={self.epochs!r}) needs batch['epoch']; the batch has {sorted(batch)}"
            )
        return self.share * min(1.0, (int(batch["epoch"]) + 1) / self.epochs)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        labels, share = require_labels(self, batch, own), self.share_at(batch)
        log_q = divergences.log_probabilities(own)
        if labels.is_floating_point():
            labels = positions.blank(labels.to(log_q.dtype), weights)
        hard = divergences.cross_entropy(log_q, labels)
        soft = divergences.cross_entropy(log_q, divergences.log_probabilities(target).exp())
        return positions.mean((1 - share) * hard + share * soft, weights)


@dataclass(frozen=True)
class MeanSquaredError(TeacherTargets):
    """Regression of the teacher's logits, before the softmax.

    L = mean over positions of 1/C sum_i (z_s,i - z_t,i)^2

    Shapes: logits (B, C) or (B, L, C). Source: Ba and Caruana, "Do Deep Nets Really Need to be Deep?", 2014, eq. 1.
    Deviation: the paper has half the sum over classes; this is 2 / C of it, so that the weight does not depend on C.
    """

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        return divergences.mean_squared_error(student, teacher)
