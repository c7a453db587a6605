"""Quality: a task's metrics as Measurements, with the reliability diagram of a classifier, from one pass over a split.

The test split is for reporting: nothing here returns a choice, and callers that choose pass `split="validation"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.measure.base import Measurement
from limbeck.measure.calibration import reliability
from limbeck.measure.latency import device_of, evaluating, torch_form
from limbeck.measure.sessions import onnx_forward, open_session, session_form
from limbeck.measure.simulated import simulated_modules
from limbeck.signals import call, first_tensor, to_device

LOWER = ("loss", "calibration_error", "perplexity", "error")


@dataclass(frozen=True)
class Quality:
    """Measurements by metric name, and the reliability bins of a classifier (None for any other task)."""

    measurements: dict[str, Measurement]
    reliability: dict[str, Any] | None = None


def assess(
    forward: Callable[[Mapping[str, Any]], Tensor],
    task: Any,
    split: str = "test",
    batch_size: int = 256,
    limit: int | None = None,
    where: str = "",
) -> Quality:
    """Every metric of the task over a split for `forward(batch) -> logits`.

    Raises DataError when a metric comes out as anything but a finite number.
    """
    watch = _Watch(forward, collect=bool(getattr(task, "classes", None)))
    metrics = task.evaluate(watch, split=split, batch_size=batch_size, limit=limit)
    settings = {"split": split, "examples": min(task.size(split), limit or task.size(split)), "batch_size": batch_size}
    made = {}
    for name, value in metrics.items():
        if not torch.isfinite(torch.tensor(float(value))):
            raise DataError(
                f"the metric {name!r} on the {split} split is {value}: the model's outputs are not finite there"
            )
        made[name] = Measurement(
            name, float(value), "", better_of(name, task), 1, float(value), float(value), where, settings
        )
    return Quality(made, watch.reliability())


def better_of(metric: str, task: Any) -> str:
    """Whether higher or lower is better: the task says it of its main metric, the name of the others."""
    if metric == task.metric:
        return task.better
    return "lower" if any(word in metric for word in LOWER) else "higher"


def quality_torch(
    model: nn.Module, task: Any, split: str = "test", batch_size: int = 256, limit: int | None = None
) -> Quality:
    """The task's metrics of a torch model, in evaluation mode. A fake-quantized model's quality is its own: it is measured as it is."""
    device = device_of(model)
    form = torch_form(model) + (" (quantization or sparsity simulated)" if simulated_modules(model) else "")

    def forward(batch: Mapping[str, Any]) -> Tensor:
        return first_tensor(call(model, to_device(batch, device)))

    with evaluating(model):
        return assess(forward, task, split, batch_size, limit, form)


def quality_onnx(
    model: Any,
    task: Any,
    split: str = "test",
    batch_size: int = 256,
    limit: int | None = None,
    threads: int | None = None,
) -> Quality:
    """The task's metrics of an ONNX file (a path or an open session), computed in ONNX Runtime."""
    session = open_session(model, threads) if isinstance(model, (str, Path)) else model
    return assess(onnx_forward(session), task, split, batch_size, limit, session_form(session))


class _Watch:
    """Passes logits through and keeps each prediction's confidence and correctness."""

    def __init__(self, forward: Callable[[Mapping[str, Any]], Tensor], collect: bool):
        self.forward, self.collect = forward, collect
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        logits = self.forward(batch)
        labels = batch.get("labels")
        if self.collect and isinstance(labels, Tensor) and logits.ndim == 2 and labels.ndim == 1:
            self.logits.append(logits.detach().float().cpu())
            self.labels.append(labels.cpu())
        return logits

    def reliability(self) -> dict[str, Any] | None:
        """`{"bins": [{"low", "high", "confidence", "accuracy", "count"}], "error"}` over everything seen."""
        if not self.logits:
            return None
        return reliability(torch.cat(self.logits), torch.cat(self.labels))
