"""Objectives over a large vocabulary that never hold the whole logits; `limbeck.objectives.chunked` says how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.chunked import Projected, TopLogits, chunked_loss
from limbeck.objectives.logits import slopes
from limbeck.objectives.logits.partitions import LabelledTargets
from limbeck.objectives.logits.slopes import Sloped
from limbeck.objectives.logits.targets import CrossEntropy, SoftTargets, TeacherTargets
from limbeck.signals import TOP_K, Reads, Signals


@dataclass(frozen=True)
class LargeVocabulary(Objective):
    """An objective on logits, computed in chunks through the output projections, so that the whole logits never exist.

    objective: one that compares logits position by position (`SoftTargets`, `CrossEntropy`, `JensenShannon`, `DecoupledKD` and their
    like). student_head, teacher_head: the paths of the output projections (linear layers from states to words). Neither model runs its
    projection, so nothing that a model does to its logits afterwards (soft capping, scaling) is part of the loss. chunk: positions at a
    time; memory grows with it, and below some hundred the projection's products take longer.

    teacher_head None: the teacher is a cache that keeps the top k words of each position (`build_cache(top_k=...)`), and its logits exist
    for some rows at a time only. Each other word then has the logit `rest`: the tail's probability is exact at the temperature that the
    cache was made for, and even over its words; at another temperature it is what that even tail gives, as when the cache is read whole.

    Shapes: the projections' inputs (B, L, D). Labels are aligned as the objective wants them. The value, its reduction and its
    gradients are the objective's own, to rounding. Raises UsageError for an objective that does not compare position by
    position, and for heads of different vocabularies.
    """

    objective: Objective
    student_head: str = "lm_head"
    teacher_head: str | None = "lm_head"
    chunk: int = 256

    def __post_init__(self) -> None:
        kinds = (TeacherTargets, LabelledTargets, CrossEntropy)
        if getattr(type(self.objective), "compute", None) not in [kind.compute for kind in kinds]:
            raise UsageError(
                f"LargeVocabulary: {type(self.objective).__name__} does not compare logits position by position; give SoftTargets, "
                "CrossEntropy or another objective on logits, and add other terms outside: LargeVocabulary(SoftTargets()) + Hint(...)"
            )
        if getattr(self.objective, "student_classes", None) is not None:
            raise UsageError(
                "LargeVocabulary: student_classes cannot be chosen of a projection that is not run; leave it out"
            )
        if self.teacher_head is None and getattr(self.objective, "classes", None) is not None:
            raise UsageError("LargeVocabulary: classes cannot be chosen of a cache's top words; leave it out")
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise UsageError(f"LargeVocabulary: chunk={self.chunk!r} must be a whole number of at least 1")

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def reads(self) -> Reads:
        student = frozenset(f"{self.student_head}:{part}" for part in ("input", "weight", "bias"))
        if not self.objective.reads.teacher:
            return Reads(student)
        if self.teacher_head is None:
            return Reads(student, frozenset(TOP_K))
        return Reads(student, frozenset(f"{self.teacher_head}:{part}" for part in ("input", "weight", "bias")))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        states, weight = student[f"{self.student_head}:input"], student[f"{self.student_head}:weight"]
        shape, one = states.shape[:-1], self.objective
        hard = isinstance(one, (CrossEntropy, LabelledTargets))
        labels = self._labels(batch, shape, len(weight)) if hard else None
        ignored = {"ignore_index": one.ignore_index} if isinstance(one, CrossEntropy) else {}
        counted = positions.weights(batch, shape, labels=hard or one.positions == "labelled", **ignored)
        return chunked_loss(
            self._sloped(),
            positions.blank(states, counted).flatten(0, -2),
            weight,
            student[f"{self.student_head}:bias"],
            teacher=self._teacher(teacher, shape, len(weight), counted) if one.reads.teacher else None,
            labels=labels,
            weights=None if counted is None else counted.flatten(),
            chunk=self.chunk,
        )

    def _sloped(self) -> Sloped:
        """The closed form where there is one; a class that was derived may compare otherwise, so only of these very classes."""
        one = self.objective
        if type(one) is SoftTargets:
            return slopes.soft_targets(one.temperature)
        if isinstance(one, CrossEntropy):
            return slopes.cross_entropy(one.label_smoothing)
        if isinstance(one, LabelledTargets):
            return slopes.by_autograd(one.compare_labelled)
        return slopes.by_autograd(lambda student, teacher, _: one.compare(student, teacher))

    def _teacher(
        self, teacher: Signals, shape: torch.Size, words: int, counted: Tensor | None
    ) -> Projected | TopLogits:
        names = TOP_K if self.teacher_head is None else [f"{self.teacher_head}:input"]
        rows = [teacher[name] for name in names]
        if rows[0].shape[:-1] != shape:
            raise UsageError(
                f"{self.name}: the student's states have the positions {tuple(shape)} and the teacher's {tuple(rows[0].shape[:-1])}: they "
                "must be the same"
            )
        rows = [positions.blank(x, counted).flatten(0, -2) for x in rows]
        if self.teacher_head is None:
            found = TopLogits(*rows)
            if len(found.classes) and found.classes.device.type == "cpu" and int(found.classes.max()) >= words:
                raise UsageError(
                    f"{self.name}: the cache names word {int(found.classes.max())}; the student's vocabulary has {words} words"
                )
            return found
        return Projected(
            *rows, *(self._classes(teacher[f"{self.teacher_head}:{x}"], words) for x in ("weight", "bias"))
        )

    def _classes(self, head: Tensor, words: int) -> Tensor:
        if self.objective.classes is not None:
            if max(self.objective.classes) >= len(head):
                raise UsageError(
                    f"{self.name}: classes names {max(self.objective.classes)}; the teacher has {len(head)}"
                )
            head = head[torch.tensor(self.objective.classes, device=head.device)]
        if len(head) != words:
            raise UsageError(
                f"{self.name}: the student's vocabulary has {words} words and the teacher's {len(head)}. Give both the same, or "
                "name the teacher's word for each of the student's: classes=(...)"
            )
        return head

    def _labels(self, batch: Batch, shape: torch.Size, words: int) -> Tensor:
        labels, ignored = batch.get("labels"), getattr(self.objective, "ignore_index", positions.IGNORED)
        if labels is None or labels.is_floating_point() or labels.shape != shape:
            found = "none" if labels is None else f"{tuple(labels.shape)} ({labels.dtype})"
            raise UsageError(
                f"{self.name}: labels must be word indices of the shape {tuple(shape)}; the batch has {found}"
            )
        labels = labels.long().masked_fill(labels == ignored, 0).flatten()
        if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < words:
            raise UsageError(f"{self.name}: a label is no word of a vocabulary of {words}")
        return labels
