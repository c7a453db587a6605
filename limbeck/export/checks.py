"""Is an exported graph right, and is it still good: outputs against torch, metrics against those from before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, LimbeckError, UsageError, did_you_mean, require
from limbeck.export.runtime import OnnxModel, first_line
from limbeck.signals import call, first_tensor


def check_quality(
    onnx: OnnxModel | Path | str,
    task: Any,
    reference: Mapping[str, float],
    tolerance: float,
    *,
    metric: str | None = None,
    split: str = "validation",
    batch_size: int = 256,
    limit: int | None = None,
) -> dict[str, float]:
    """Measure the task's metrics in ONNX Runtime and stop when `metric` (None: the task's main one) lost more than `tolerance`.

    reference   metrics of the model before export, measured on the same split and limit
    tolerance   the largest loss, in the metric's own unit (0.01 of an accuracy is one percentage point)

    Returns the metrics. On a loss the file is kept for inspection as `PATH.rejected`, so that nothing deploys it by name,
    and ExportError names the metric, before and after.
    """
    runner = onnx if isinstance(onnx, OnnxModel) else OnnxModel(onnx)
    metric = metric or task.metric
    if metric not in reference:
        raise UsageError(f"the reference has no metric {metric!r}. {did_you_mean(metric, reference)}")
    found = task.evaluate(runner, split, batch_size, limit)
    refuse_loss(runner.path, task, reference, found, tolerance, "in ONNX Runtime", metric, split)
    return found


def refuse_loss(
    path: Path,
    task: Any,
    reference: Mapping[str, float],
    found: Mapping[str, float],
    tolerance: float,
    where: str,
    metric: str | None = None,
    split: str = "validation",
) -> None:
    """Put an export whose `metric` (None: the task's main one) lost more than `tolerance` aside, as `PATH.rejected`, and raise
    ExportError. reference, found: metrics before and after; where: what ran, in words."""
    metric = metric or task.metric
    before, after = float(reference[metric]), float(found[metric])
    better = task.better if metric == task.metric else "higher" if metric == "accuracy" else "lower"
    lost = before - after if better == "higher" else after - before
    if not lost <= tolerance:
        rejected = path.with_name(path.name + ".rejected")
        shutil.rmtree(rejected, ignore_errors=True)
        os.replace(path, rejected)
        raise ExportError(
            f"the export lost quality: {metric} on {split} was {before:.6g} and is {after:.6g} {where}, "
            f"at most {tolerance:g} may be lost. It is kept as {rejected}."
        )


def rows_of(tensor: Tensor, count: int) -> Tensor:
    return tensor[torch.arange(count) % tensor.shape[0]]


def variants(example: dict[str, Tensor], dynamic: Mapping[str, Mapping[str, str]]) -> Iterator[dict[str, Tensor]]:
    """The example, and what a dynamic axis must also take: one row, five rows, shorter rows, padded rows."""
    yield example
    mask = example.get("attention_mask")
    if mask is not None and mask.dim() == 2 and mask.shape[1] > 1:
        rows, length = mask.shape
        kept = length - (torch.arange(rows) + 1) * max(1, length // (2 * rows))
        padded = (torch.arange(length) < kept.clamp_min(1)[:, None]).to(mask.dtype)
        yield {**example, "attention_mask": padded}
    if all("0" in dynamic.get(name, {}) for name in example):
        for rows in (1, 5):
            yield {name: rows_of(tensor, rows) for name, tensor in example.items()}
    varying = [name for name in example if "1" in dynamic.get(name, {})]
    if varying:
        length = example[varying[0]].shape[1]
        for shorter in sorted({max(2, length // 2), max(2, length - 1)} - {length}):
            yield {n: t[:, :shorter] if n in varying and t.shape[1] == length else t for n, t in example.items()}


def verify(
    model: nn.Module, file: Path, example: dict[str, Tensor], dynamic: Mapping[str, Mapping[str, str]], limit: float
) -> tuple[float, int]:
    """The largest relative difference and the number of checks. Raises ExportError beyond the limit."""
    onnx = require("onnx", "onnx")
    try:
        onnx.checker.check_model(str(file))
        runner = OnnxModel(file, threads=1)
    except (LimbeckError, onnx.checker.ValidationError) as error:
        raise ExportError(f"the exported graph is not valid: {first_line(error)}") from error
    worst, checks = 0.0, 0
    for batch in variants(example, dynamic):
        with torch.no_grad():
            expected = first_tensor(call(model, batch)).float()
        shapes = {name: list(tensor.shape) for name, tensor in batch.items()}
        try:
            found = runner(batch).float()
        except UsageError as error:
            raise ExportError(f"the exported graph does not run where torch does: {error}") from error
        if found.shape != expected.shape:
            raise ExportError(
                f"on inputs {shapes} torch gives {tuple(expected.shape)}, ONNX Runtime {tuple(found.shape)}"
            )
        scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        difference = float((found - expected).abs().max() / scale)
        if not difference <= limit:
            raise ExportError(
                f"on inputs {shapes} the outputs of ONNX Runtime differ from torch by {difference:.3g} of the largest "
                f"output; {limit:g} is allowed. Nothing was written."
            )
        worst, checks = max(worst, difference), checks + 1
    return worst, checks
