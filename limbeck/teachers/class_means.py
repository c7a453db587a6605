"""ClassMeans: a teacher that also says where the class of each example lies in its feature space."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.objectives import connectors as connect
from limbeck.objectives.features.directions import CLASS_MEAN
from limbeck.objectives.positions import precise
from limbeck.signals import Signals, capture, to_device
from limbeck.teachers.base import Teacher


class ClassMeans:
    """A teacher whose answers also have "class_mean": for each example the mean feature of its class, (B, D).

    teacher: answers everything else. means: (classes, D), as `class_means` computes them. Needs batches with `labels` (B,);
    labels that are probabilities (B, classes) get the mean that they mix.
    Raises UsageError for means that are no matrix, and for labels that are no class.
    """

    def __init__(self, teacher: Teacher, means: Tensor):
        if means.dim() != 2 or not bool(means.isfinite().all()):
            raise UsageError(f"ClassMeans: means of shape {tuple(means.shape)} must be finite (classes, width)")
        self.teacher, self.means = teacher, means.detach().clone()

    @property
    def changes(self) -> bool:
        return self.teacher.changes

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        rest = frozenset(names) - {CLASS_MEAN}
        found = dict(self.teacher.signals(batch, rest)) if rest else {}
        if CLASS_MEAN in names:
            found[CLASS_MEAN] = self._of(batch)
        return Signals(found)

    def _of(self, batch: Mapping[str, Any]) -> Tensor:
        labels = batch.get("labels")
        if labels is None:
            raise UsageError(f"ClassMeans needs batch['labels']; the batch has {sorted(batch)}")
        classes = len(self.means)
        if labels.is_floating_point():
            if labels.dim() == 2 and labels.shape[1] == classes:
                return labels @ self.means.to(labels.dtype)
        elif labels.dim() == 1 and (not len(labels) or 0 <= int(labels.min()) <= int(labels.max()) < classes):
            return self.means[labels]
        raise UsageError(
            f"ClassMeans: labels of shape {tuple(labels.shape)} ({labels.dtype}) must be classes 0 to {classes - 1} (B,), or "
            f"probabilities (B, {classes})"
        )

    def modules(self) -> dict[str, nn.Module]:
        return self.teacher.modules()

    def to(self, device: Any) -> None:
        self.teacher.to(device)
        self.means = self.means.to(device)

    def start(self, student: nn.Module) -> None:
        self.teacher.start(student)

    def after_step(self, student: nn.Module, step: int) -> None:
        self.teacher.after_step(student, step)

    def observe(self, batch: Mapping[str, Any], student: Signals) -> None:
        if hasattr(self.teacher, "observe"):
            self.teacher.observe(batch, student)

    def digest(self) -> str:
        means = hashlib.sha256(self.means.cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        return digest({"kind": "class means", "teacher": self.teacher.digest(), "means": means})


@torch.no_grad()
def class_means(model: nn.Module, task: Any, signal: str, split: str = "train", batch_size: int = 256) -> Tensor:
    """The mean of a model's signal over the examples of each class: (classes, D) in float32.

    Maps and sequences are averaged over their positions first. The model is put into evaluation mode; nothing is augmented.
    Raises UsageError for a task without classes, and for a class without examples.
    """
    if not task.classes:
        raise UsageError(f"class_means: the task {task.name} has no classes")
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    total, count = None, torch.zeros(len(task.classes), dtype=torch.float64)
    for batch in task.batches(split, batch_size):
        batch = to_device(batch, device)
        feature = precise(connect.pool(capture(model, batch, {signal})[signal], batch)).double()
        labels = batch["labels"]
        total = feature.new_zeros(len(count), feature.shape[1]) if total is None else total
        total.index_add_(0, labels, feature)
        count += torch.bincount(labels.cpu(), minlength=len(count))
    if total is None or bool((count == 0).any()):
        missing = [task.classes[i] for i in (count == 0).nonzero().flatten()]
        raise UsageError(f"class_means: the split {split!r} has no example of {missing}")
    return (total / count.to(total.device).unsqueeze(1)).float()
