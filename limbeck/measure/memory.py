"""Peak memory: what loading a model and one inference add to a process's resident memory.

A file is measured in a fresh process, so that nothing loaded before can hide it: resident bytes are read after the
runtime's import, then the model is opened and run once, and the difference to the process's high-water mark counts. It
includes the runtime's own arenas and threads, which for a model of a few kilobytes are larger than the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.errors import ArtifactError, UsageError
from limbeck.measure.base import Measurement
from limbeck.measure.memory_child import Sampler, resident
from limbeck.measure.sessions import feeds_for, onnx_form, open_session
from limbeck.signals import TARGETS

TIMEOUT_SECONDS = 600


def peak_memory_onnx(
    path: Path | str, task: Any, batch_size: int = 1, threads: int | None = None, runs: int = 3
) -> Measurement:
    """`peak_memory` of opening an ONNX file and one run in ONNX Runtime, in fresh processes; median and quartiles of `runs`."""
    feeds = feeds_for(open_session(path, 1), task, batch_size)
    return _peak_memory("onnx", path, feeds, batch_size, threads, runs, onnx_form(path))


def peak_memory_artifact(
    folder: Path | str,
    task: Any,
    batch_size: int = 1,
    threads: int | None = None,
    runs: int = 3,
    trust: Iterable[str] = (),
) -> Measurement:
    """`peak_memory` of loading an artifact folder with `limbeck.load` and one forward pass in torch, in fresh processes."""
    entries = {name: value.numpy() for name, value in task.example(batch_size).items() if name not in TARGETS}
    return _peak_memory("artifact", folder, entries, batch_size, threads, runs, "torch", tuple(trust))


def _peak_memory(kind, path, feeds, batch_size, threads, runs, form, trust=()) -> Measurement:
    if runs < 1:
        raise UsageError(f"runs={runs}: at least one run is needed")
    threads = threads or torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder, "feeds.npz")
        np.savez(stored, **feeds)
        job = {
            "kind": kind,
            "path": str(Path(path).resolve()),
            "feeds": str(stored),
            "threads": threads,
            "trust": list(trust),
        }
        values = [_run_child(job, path) for _ in range(runs)]
    where = f"{form}, fresh process, {threads} thread{'s' * (threads != 1)}, batch {batch_size}"
    settings = {"batch_size": batch_size, "threads": threads}
    return Measurement.of_runs("peak_memory", values, unit="bytes", better="lower", where=where, settings=settings)


def _run_child(job: dict[str, Any], path: Path | str) -> int:
    program = Path(__file__).with_name("memory_child.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    try:
        ended = subprocess.run(
            [sys.executable, str(program)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"measuring the memory of {path} took more than {TIMEOUT_SECONDS} seconds") from error
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode}"])[-1]
        raise ArtifactError(f"cannot measure the memory of {path}: {reason}")
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    return max(found["peak"] - found["before"], 0)


def peak_memory_of(run: Callable[[], Any]) -> int:
    """Bytes that one call adds at its peak to this process's resident memory, sampled every millisecond.

    A lower bound: memory that the allocator kept from earlier work is reused and not seen, and neither is a peak
    shorter than the sampling interval. Measure a file in a fresh process where that matters.
    """
    before = resident()
    sampler = Sampler()
    sampler.start()
    try:
        run()
    finally:
        peak = sampler.finish()
    return max(peak - before, 0)
