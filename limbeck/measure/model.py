"""Everything about one model in one call: quality on a split, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.measure.base import Measurement
from limbeck.measure.flops import flops
from limbeck.measure.latency import latency_onnx, latency_torch, throughput_onnx, throughput_torch
from limbeck.measure.memory import peak_memory_onnx
from limbeck.measure.quality import quality_onnx, quality_torch
from limbeck.measure.sessions import fixed_batch_size, open_session
from limbeck.measure.simulated import reports_real_cost
from limbeck.measure.size import disk_bytes, model_bytes, parameters


def cost_model(
    model: nn.Module,
    task: Any,
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 10.0,
    throughput_batch_size: int | None = 32,
) -> dict[str, Measurement]:
    """Parameters, bytes, FLOPs, latency at batch 1 and throughput of a torch model.

    A model that only simulates quantization or sparsity gets its dense size and no speed. `throughput_batch_size=None`
    leaves the throughput out.
    """
    found = [parameters(model), model_bytes(model), flops(model, task)]
    if reports_real_cost(model):
        timing = {"threads": threads, "runs": runs, "warmup": warmup, "budget_seconds": budget_seconds}
        found.append(latency_torch(model, task, 1, **timing))
        if throughput_batch_size:
            found.append(throughput_torch(model, task, throughput_batch_size, **timing))
    return {measurement.name: measurement for measurement in found}


def cost_onnx(
    path: Path | str,
    task: Any,
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 10.0,
    throughput_batch_size: int | None = 32,
    memory_runs: int = 3,
) -> dict[str, Measurement]:
    """Bytes on disk, latency at batch 1, throughput and peak memory of an ONNX file in ONNX Runtime.

    A graph with a fixed batch size is measured at that size. `memory_runs=0` leaves the peak memory out.
    """
    session = open_session(path, threads)
    timing = {"runs": runs, "warmup": warmup, "budget_seconds": budget_seconds}
    fixed = fixed_batch_size(session)
    found = [disk_bytes(path), latency_onnx(session, task, fixed or 1, **timing)]
    if throughput_batch_size:
        found.append(throughput_onnx(session, task, fixed or throughput_batch_size, **timing))
    if memory_runs:
        found.append(peak_memory_onnx(path, task, fixed or 1, threads, memory_runs))
    return {measurement.name: measurement for measurement in found}


def measure_model(
    model: nn.Module, task: Any, split: str = "test", limit: int | None = None, batch_size: int = 256, **cost: Any
) -> dict[str, Measurement]:
    """Quality on a split and every cost of a torch model; `cost` are the settings of `cost_model`."""
    return quality_torch(model, task, split, batch_size, limit).measurements | cost_model(model, task, **cost)


def measure_onnx(
    path: Path | str, task: Any, split: str = "test", limit: int | None = None, batch_size: int = 256, **cost: Any
) -> dict[str, Measurement]:
    """Quality on a split and every cost of an ONNX file in ONNX Runtime; `cost` are the settings of `cost_onnx`."""
    threads = cost.get("threads")
    return quality_onnx(path, task, split, batch_size, limit, threads).measurements | cost_onnx(path, task, **cost)
