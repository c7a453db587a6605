"""What the channels of a fold look like on calibration data, in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.pruning.importance import input_rows
from limbeck.quantization.calibration import evaluating
from limbeck.signals import Tap, call, to_device


@dataclass
class ChannelStatistics:
    """Of one layer's input, (channels,) each, over every position that is not padding.

    largest, mean: of |x|. gram: sum of x x^T over `count` positions, (channels, channels) in float64, where it was asked for.
    """

    largest: Tensor
    mean: Tensor
    count: int = 0
    gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in rows (positions, channels)."""
        size = rows.abs()
        if not size.isfinite().all():
            raise DataError("an activation is NaN or infinite during calibration; check the model's weights and inputs")
        total = self.mean * self.count + size.double().sum(0)
        self.largest = torch.maximum(self.largest, size.amax(0))
        self.count += len(rows)
        self.mean = total / self.count
        if self.gram is not None:
            self.gram += rows.double().T @ rows.double()


def channel_statistics(
    model: nn.Module, task: Any, paths: Sequence[str], examples: int, batch_size: int, gram: bool = False
) -> dict[str, ChannelStatistics]:
    """Statistics of the inputs of the named layers on `examples` examples of the train split; the model stays as it is.

    A layer that was never reached is absent. Raises UsageError without a task, DataError without data.
    """
    if not paths:
        return {}
    if task is None:
        raise UsageError("channel scales are calibrated on a task's train split and no task was given: pass one")
    modules = dict(model.named_modules())
    found: dict[str, ChannelStatistics] = {}
    batch: dict[str, Any] = {}

    def visit(name: str, value: Tensor) -> None:
        path = name.removesuffix(":input")
        rows = input_rows(modules[path], value, batch)
        if path not in found and len(rows):
            size = rows.shape[1]
            square = rows.new_zeros((size, size), dtype=torch.float64) if gram else None
            found[path] = ChannelStatistics(rows.new_zeros(size), rows.new_zeros(size, dtype=torch.float64), 0, square)
        if len(rows):
            found[path].add(rows)

    with evaluating(model) as device, torch.no_grad(), Tap(model, {f"{path}:input" for path in paths}, visit):
        for given in task.batches("train", batch_size, limit=examples):
            batch = to_device(given, device)
            call(model, batch)
    if not batch:
        raise DataError("the train split gave no batch to calibrate with")
    return found
