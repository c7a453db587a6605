"""Latency and throughput: warm-up, many runs, median and quartiles, threads stated.

One run is timed with the monotonic high-resolution clock around one call; on an accelerator the call is followed by a
synchronization inside the timed region. Speeds are only comparable within one machine at one load, which is why
`interleaved` times two things alternately and gives the ratio of neighbours.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.measure.base import Measurement
from limbeck.measure.sessions import feeds_for, open_session, session_form, session_threads
from limbeck.measure.simulated import demand_real_cost
from limbeck.signals import call, to_device

LEAST_RUNS = 3  # a spread needs at least this many, whatever the time budget says


def time_runs(run: Callable[[], Any], runs: int = 30, warmup: int = 5, budget_seconds: float = 10.0) -> list[float]:
    """Seconds of each of `runs` calls after `warmup` untimed ones.

    Stops early once `budget_seconds` are used (warm-up included), but never before three timed runs.
    """
    if runs < 1 or warmup < 0 or budget_seconds <= 0:
        raise UsageError(
            f"runs={runs}, warmup={warmup}, budget_seconds={budget_seconds}: "
            "runs must be at least 1, warmup at least 0 and the time budget above 0"
        )
    began, seconds = time.perf_counter(), []
    for _ in range(warmup):
        run()
        if time.perf_counter() - began > budget_seconds / 2:
            break
    while len(seconds) < runs:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        seconds.append(now - start)
        if now - began > budget_seconds and len(seconds) >= min(runs, LEAST_RUNS):
            break
    return seconds


def measure_latency(
    run: Callable[[], Any],
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 10.0,
    where: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Measurement:
    """`latency` of a callable in seconds: median and quartiles of its timed runs."""
    seconds = time_runs(run, runs, warmup, budget_seconds)
    settings = {"warmup": warmup, **(settings or {})}
    return Measurement.of_runs("latency", seconds, unit="seconds", better="lower", where=where, settings=settings)


def as_throughput(latency: Measurement, items: int) -> Measurement:
    """`throughput` in items/s from the latency of a call over `items` items (the quartiles swap)."""
    low, high = (items / bound if bound else None for bound in (latency.high, latency.low))
    return Measurement(
        "throughput",
        items / latency.value,
        "items/s",
        "higher",
        latency.runs,
        low,
        high,
        latency.where,
        latency.settings,
    )


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[int]:
    """Run with this many intra-operation threads (None: as it is) and put the old number back."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: at least one thread is needed")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield threads or before
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient inside the block; every module's own mode is put back after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def torch_form(model: nn.Module) -> str:
    """How a torch model computes, in words: `torch float32`, `torch int8 weights`, `torch int4/int8 weights`."""
    from limbeck.measure.size import layer_table

    rows = [row for row in layer_table(model) if row["parameters"]]
    packed = sorted({row["bits"] for row in rows if row["bits"] < 16})
    if packed:
        return (
            "torch " + "/".join(f"int{bits}" if bits == int(bits) else f"{bits:g}-bit" for bits in packed) + " weights"
        )
    floating = [p.dtype for p in model.parameters() if p.is_floating_point()]
    dtype = max(set(floating), key=floating.count) if floating else torch.float32
    return "torch " + str(dtype).removeprefix("torch.")


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first tensor; the CPU for one without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def latency_torch(
    model: nn.Module,
    task: Any,
    batch_size: int = 1,
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 10.0,
) -> Measurement:
    """`latency` of one forward pass of a torch model on the task's example inputs.

    Raises UsageError for a model that only simulates quantization or sparsity.
    """
    demand_real_cost(model, "latency")
    device = device_of(model)
    batch = to_device(task.example(batch_size), device)
    synchronize = _synchronizer(device)

    def run() -> None:
        call(model, batch)
        synchronize()

    with torch_threads(threads) as used, evaluating(model):
        where = f"{torch_form(model)}, {_place(device, used)}, batch {batch_size}"
        return measure_latency(run, runs, warmup, budget_seconds, where, {"batch_size": batch_size, "threads": used})


def throughput_torch(model: nn.Module, task: Any, batch_size: int = 32, **settings: Any) -> Measurement:
    """`throughput` of a torch model at a batch size, in items/s; settings as of `latency_torch`."""
    return as_throughput(latency_torch(model, task, batch_size, **settings), batch_size)


def latency_onnx(
    model: Any,
    task: Any,
    batch_size: int = 1,
    threads: int | None = None,
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 10.0,
) -> Measurement:
    """`latency` of one run of an ONNX file (a path, or an open InferenceSession) in ONNX Runtime on the CPU."""
    session = open_session(model, threads) if isinstance(model, (str, Path)) else model
    used = session_threads(session)
    feeds = feeds_for(session, task, batch_size)
    where = f"{session_form(session)}, {used} thread{'s' * (used != 1)}, batch {batch_size}"
    settings = {"batch_size": batch_size, "threads": used}
    return measure_latency(lambda: session.run(None, feeds), runs, warmup, budget_seconds, where, settings)


def throughput_onnx(model: Any, task: Any, batch_size: int = 32, **settings: Any) -> Measurement:
    """`throughput` of an ONNX file or session at a batch size, in items/s; settings as of `latency_onnx`."""
    return as_throughput(latency_onnx(model, task, batch_size, **settings), batch_size)


@dataclass(frozen=True)
class Comparison:
    """Two things timed alternately. `ratio` is time of a / time of b per neighbouring pair: above 1, b is faster."""

    a: Measurement
    b: Measurement
    ratio: Measurement


def interleaved(
    a: Callable[[], Any],
    b: Callable[[], Any],
    runs: int = 30,
    warmup: int = 5,
    budget_seconds: float = 20.0,
    where: str = "",
) -> Comparison:
    """Time two callables alternately (a b, b a, a b, ...), so that a machine's drift falls on both alike.

    ratio = median over pairs of t_a / t_b, with its quartiles.
    """
    for _ in range(warmup):
        a(), b()
    began, times = time.perf_counter(), ([], [])
    for index in range(runs):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            times[which].extend(time_runs((a, b)[which], 1, 0))
        if time.perf_counter() - began > budget_seconds and index + 1 >= LEAST_RUNS:
            break
    shared = {"where": where, "settings": {"warmup": warmup, "interleaved": True}}
    made = [Measurement.of_runs("latency", seconds, unit="seconds", better="lower", **shared) for seconds in times]
    ratios = [first / second for first, second in zip(*times)]
    return Comparison(made[0], made[1], Measurement.of_runs("ratio", ratios, better="higher", **shared))


def _synchronizer(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    return lambda: None


def _place(device: torch.device, threads: int) -> str:
    return f"{threads} thread{'s' * (threads != 1)}" if device.type == "cpu" else str(device)
