"""Stages made from models: measure, and file what was measured under the words of the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.measure.latency import torch_form
from limbeck.measure.model import cost_model, cost_onnx
from limbeck.measure.quality import quality_onnx, quality_torch
from limbeck.measure.sessions import onnx_form, open_session
from limbeck.measure.simulated import reports_real_cost
from limbeck.measure.size import layer_table
from limbeck.report.report import Stage

SIMULATED = "quantization or sparsity is only simulated here: the size is the dense one, and no speed is given"


def stage_of_model(
    name: str,
    step: str,
    model: nn.Module,
    task: Any,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 256,
    notes: Iterable[str] = (),
    **cost: Any,
) -> Stage:
    """Measure a torch model into a stage: quality, costs, layers and, of a classifier, its reliability diagram.

    `cost` are the settings of `limbeck.measure.cost_model` (threads, runs, warmup, budget_seconds, ...).
    """
    quality = quality_torch(model, task, split, batch_size, limit)
    measurements = quality.measurements | cost_model(model, task, **cost)
    notes = (*notes, *(() if reports_real_cost(model) else (SIMULATED,)))
    return Stage(name, step, torch_form(model), measurements, notes, tuple(layer_table(model)), quality.reliability)


def stage_of_onnx(
    name: str,
    step: str,
    path: Path | str,
    task: Any,
    split: str = "test",
    limit: int | None = None,
    batch_size: int = 256,
    notes: Iterable[str] = (),
    layers: Iterable[dict[str, Any]] = (),
    **cost: Any,
) -> Stage:
    """Measure an ONNX file in ONNX Runtime into a stage. `cost` are the settings of `limbeck.measure.cost_onnx`."""
    session = open_session(path, cost.get("threads"))
    quality = quality_onnx(session, task, split, batch_size, limit)
    measurements = quality.measurements | cost_onnx(path, task, **cost)
    return Stage(name, step, onnx_form(path), measurements, tuple(notes), tuple(layers), quality.reliability)
