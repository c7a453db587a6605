"""One's own task: any data, a metric and, where it is not cross-entropy, a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.rows import Rows, rows
from limbeck.datasets.split import holdout
from limbeck.errors import DataError, UsageError
from limbeck.signals import first_tensor
from limbeck.tasks.base import IGNORED, SPLITS, Forward, Task, cross_entropy


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of labels that are the largest logit; labels of -100 do not count. (..., classes), (...)"""
    counted = labels != IGNORED
    return ((logits.argmax(-1) == labels) & counted).sum().item() / max(int(counted.sum()), 1)


class CustomTask(Task):
    """A task from one's own data.

        CustomTask({"train": (x, y), "test": (x2, y2)}, classes=["cat", "dog"])
        CustomTask({"train": loader, "validation": ..., "test": ...}, metric=r2, metric_name="r2", loss=torch.nn.functional.mse_loss)

    splits: train and test, and validation or else the `holdout` share of train. Each is a `datasets.Dataset`, a torch Dataset
        with a length, a DataLoader over one (its order and batch size are not used), (x, y) or a mapping of arrays.
    metric: `metric(logits, labels) -> float` over a whole split, both on the CPU in file order; `metric_name` and `better`
        ("higher" or "lower") say what it is.
    loss: `loss(logits, labels) -> scalar`, the mean over a batch; by default cross-entropy, ignoring -100.
    inputs: the batch keys that are model inputs, in positional order. labels: the column with the labels.
    classes: class names or their number; labels are then checked against it.
    augment: `augment(batch, generator) -> batch`, which must draw only from the generator; `augmentation` names it.
    version: names the data in `digest`; without it all data are read once and hashed. Change it when the data change.
    """

    def __init__(
        self,
        splits: Mapping[str, Any],
        *,
        metric: Callable[[Tensor, Tensor], float] = accuracy,
        metric_name: str = "accuracy",
        better: str = "higher",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        inputs: Sequence[str] = ("pixel_values",),
        labels: str = "labels",
        classes: Sequence[str] | int | None = None,
        augment: Callable[[dict[str, Any], torch.Generator], dict[str, Any]] | None = None,
        augmentation: str | None = None,
        holdout: float = 0.1,
        name: str = "custom",
        version: str | None = None,
    ):
        if better not in ("higher", "lower"):
            raise UsageError(f"better must be 'higher' or 'lower', not {better!r}")
        if augment is not None and not augmentation:
            raise UsageError("name your augmentation and its settings (augmentation='...'): caches are keyed by it")
        self.inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
        if not self.inputs:
            raise UsageError("inputs must name at least one batch key")
        self.name = self.dataset = name
        self.metric, self.better = metric_name, better
        self.classes = tuple(map(str, range(classes))) if isinstance(classes, int) else classes and tuple(classes)
        self.augmentation = augmentation or "none"
        self._metric, self._loss, self._augment, self._version = metric, loss, augment, version
        self._rows = self._adapted(splits, labels, holdout)

    def _adapted(self, splits: Mapping[str, Any], labels: str, share: float) -> dict[str, Rows]:
        unknown = [split for split in splits if split not in SPLITS]
        missing = [split for split in ("train", "test") if split not in splits]
        if unknown or missing:
            raise DataError(f"splits must be train, test and perhaps validation, not {', '.join(splits) or 'none'}")
        made = {split: rows(data, self.inputs, labels, f"split {split!r}") for split, data in splits.items()}
        if "validation" not in made:
            train = made["train"]
            for split, at in zip(("train", "validation"), holdout(train.size, share, "validation")):
                made[split] = Rows(len(at), lambda index, at=at: train.take([at[i] for i in index]))
        return made

    def size(self, split: str) -> int:
        self._check_split(split)
        return self._rows[split].size

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Any]:
        batch = self._rows[split].take(index.tolist())
        labels = batch["labels"]
        if self.classes and isinstance(labels, Tensor) and not labels.is_floating_point():
            wrong = (labels != IGNORED) & ((labels < 0) | (labels >= len(self.classes)))
            if wrong.any():
                raise DataError(
                    f"split {split!r} has the label {labels[wrong][0].item()}, outside the {len(self.classes)} classes "
                    f"0..{len(self.classes) - 1}"
                )
        return self._augment(batch, augment) if augment is not None and self._augment else batch

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        labels = batch["labels"]
        if self._loss is not None:
            return self._loss(logits, labels)
        if labels.is_floating_point() and labels.shape != logits.shape:
            raise UsageError("labels that are not classes need a loss, e.g. loss=torch.nn.functional.mse_loss")
        return cross_entropy(logits, labels, batch.get("sample_weight"))

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        outputs, labels, total, count = [], [], 0.0, 0
        with torch.no_grad():
            for batch in self.batches(split, batch_size, limit=limit):
                logits = first_tensor(forward(batch)).detach().float().cpu()
                total += float(self.loss(logits, batch)) * len(batch["index"])
                count += len(batch["index"])
                outputs.append(logits)
                labels.append(batch["labels"])
        measured = float(self._metric(torch.cat(outputs), torch.cat(labels)))
        return {self.metric: measured, "loss": total / count}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "inputs": self.inputs, "classes": self.classes, "version": self._version}
        if self._version is None:
            for split in SPLITS:
                for batch in self.batches(split, 256):
                    for key in sorted(batch):
                        value = batch[key]
                        yield from (key, value if isinstance(value, Tensor) else repr(value))
