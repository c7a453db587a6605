"""The batches of a run: which come at which step, mixed, cut into pieces, in the right memory order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError
from limbeck.training.config import TrainingConfig
from limbeck.training.mixing import mix_batch
from limbeck.training.randomness import derived_seed, seed_everything


class Feed:
    """The train split of a task as an endless row of steps: batch k is a function of (seed, k) alone.

    Each batch also carries `epoch`, which a cached teacher looks its answers up by. Before a batch is fetched the global
    generators are seeded from (seed, step, process). Raises DataError for an empty split.
    """

    def __init__(self, task: Any, config: TrainingConfig, seed: int, process: int = 0):
        self.task, self.config, self.seed, self.process = task, config, seed, process
        self.examples = task.size("train")
        if not self.examples:
            raise DataError("the train split of the task is empty: there is nothing to train on")
        self.per_epoch = config.steps_per_epoch(self.examples)
        self.mixes = bool(config.mixup or config.cutmix or config.label_smoothing)

    def first(self) -> dict[str, Any]:
        """The first batch, mixed as all will be, so that a task that cannot be mixed is refused early."""
        batch = next(self._epoch(0, 0), None)
        if batch is None:
            raise DataError("the train split of the task gave no batch")
        if self.mixes:
            self.mixed(batch, 0)
        return batch

    def start(self, step: int) -> Iterator[dict[str, Any]]:
        """The batches of steps `step`, `step + 1`, ... without end."""
        while True:
            epoch, skip = divmod(step, self.per_epoch)
            given = self._epoch(epoch, skip)
            for _ in range(skip, self.per_epoch):
                # for the whole step: dropout, procedures, and tasks that draw from a global generator
                seed_everything(derived_seed(self.seed, "step", step, self.process))
                batch = next(given, None)
                if batch is None:
                    raise DataError(
                        f"the task gave fewer batches in epoch {epoch} than its size of {self.examples} train examples "
                        f"and batch_size={self.config.batch_size} promise"
                    )
                batch = self.mixed(batch, step) if self.mixes else batch
                yield channels_last(batch) if self.config.channels_last else batch
                step += 1

    def _epoch(self, epoch: int, skip: int) -> Iterator[dict[str, Any]]:
        config = self.config
        choice = {"augment": config.augment, "limit": config.limit, "skip": skip}
        for batch in self.task.batches("train", config.batch_size, seed=self.seed, epoch=epoch, **choice):
            yield {**batch, "epoch": epoch}

    def mixed(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The batch with mixup, cutmix and label smoothing. Raises UsageError for a task without classes."""
        classes = getattr(self.task, "classes", None)
        if not classes:
            raise UsageError("label_smoothing, mixup and cutmix need a task with classes, and this one has none")
        config = self.config
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "mix", step))
        settings = (config.mixup, config.cutmix, config.label_smoothing, config.mixup_share)
        return mix_batch(batch, len(classes), generator, *settings)


def size(batch: Mapping[str, Any]) -> int:
    """How many examples a batch has: the length of its first entry."""
    return len(next(iter(batch.values())))


def part(batch: Mapping[str, Any], low: int, high: int) -> dict[str, Any]:
    """Examples `low` up to `high`; entries that are not one per example stay whole."""
    count = size(batch)
    return {
        name: value[low:high] if isinstance(value, (Tensor, list, tuple)) and len(value) == count else value
        for name, value in batch.items()
    }


def split(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Cut a batch into `count` pieces along its examples, as even as possible; a piece without examples is {}."""
    bounds = [size(batch) * i // count for i in range(count + 1)]
    return [part(batch, low, high) if high > low else {} for low, high in itertools.pairwise(bounds)]


def channels_last(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its (B, C, H, W) tensors in channels-last memory order."""
    return {
        name: value.contiguous(memory_format=torch.channels_last)
        if isinstance(value, Tensor) and value.ndim == 4
        else value
        for name, value in batch.items()
    }
