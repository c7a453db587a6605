"""A task with more to train on: examples of another one, without their labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError
from limbeck.tasks.base import IGNORED, Forward, Task


class ExtendedTask(Task):
    """A task whose train split goes on with unlabelled examples of another task's: their labels are -100, which no loss on labels counts.

    An objective with positions="all" learns from all of them, and `CrossEntropy` from the labelled ones. Everything else, validation and
    test above all, is the first task's. Positions 0 up to size - 1 are its own, the others follow.

    repeat: how often each labelled example comes in an epoch, so that few of them keep up with a large pool; with repeat n, positions 0 up
    to n size - 1 are its own, in n turns.
    task: gives labels, splits and metrics. extra: a task of the same inputs. positions: which examples of its train split, in that
    order; None: all. Another `ExtendedTask` may be `task`, so pools add up. Raises UsageError for positions that are not there, DataError for
    inputs that do not fit.
    """

    def __init__(self, task: Task, extra: Task, positions: Tensor | None = None, repeat: int = 1):
        if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
            raise UsageError(f"ExtendedTask: repeat={repeat!r} must be a whole number of at least 1")
        self.task, self.extra, self.repeat = task, extra, repeat
        count = extra.size("train")
        self.positions = torch.arange(count) if positions is None else positions.long().cpu()
        found = self.positions
        if found.dim() != 1 or (len(found) and not 0 <= int(found.min()) <= int(found.max()) < count):
            raise UsageError(
                f"ExtendedTask: positions must be (n,) whole numbers from 0 to {count - 1}, its pool's size - 1"
            )
        self.name, self.dataset, self.metric, self.better = task.name, task.dataset, task.metric, task.better
        self.classes, self.inputs = task.classes, task.inputs
        self.augmentation = f"{task.augmentation}; {extra.augmentation}"

    def splits(self) -> tuple[str, ...]:
        return self.task.splits()

    def size(self, split: str) -> int:
        own = self.task.size(split)
        return self.repeat * own + len(self.positions) if split == "train" else own

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        size = self.task.size(split)
        own = self.size(split) - len(self.positions) if split == "train" else size
        more = index >= own
        if not bool(more.any()):
            return self.task._examples(split, index % size, augment)
        added = self.extra._examples("train", self.positions[index[more] - own], augment)
        added["labels"] = torch.full_like(added["labels"], IGNORED)
        if bool(more.all()):
            return added
        first = self.task._examples(split, index[~more] % size, augment)
        place = torch.cat([(~more).nonzero()[:, 0], more.nonzero()[:, 0]]).argsort()
        return {name: self._joined(name, first[name], added)[place] for name in first}

    def _joined(self, name: str, first: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        if name not in added or added[name].shape[1:] != first.shape[1:]:
            other = tuple(added[name].shape[1:]) if name in added else "nothing"
            raise DataError(
                f"ExtendedTask: {name} of {self.dataset!r} has the shape {tuple(first.shape[1:])} per example, of "
                f"{self.extra.dataset!r} {other}: give both tasks the same sizes"
            )
        return torch.cat([first, added[name].to(first.dtype)])

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        return self.task.evaluate(forward, split, batch_size, limit)

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return self.task.loss(logits, batch)

    def _content(self) -> Iterator[Any]:
        yield {"task": "extended", "first": self.task.digest(), "extra": self.extra.digest(), "repeat": self.repeat}
        yield self.positions
