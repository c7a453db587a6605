"""Running an exported ONNX file in ONNX Runtime, as a function from a batch to logits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError, require

_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


def available_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def session_options(threads: int | None = None) -> Any:
    """onnxruntime.SessionOptions: all graph optimizations, nodes one after the other, `threads` (None: all) inside a node."""
    runtime = require("onnxruntime", "onnx")
    threads = available_threads() if threads is None else threads
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise UsageError(f"threads must be a whole number from 1, got {threads!r}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return options


class OnnxModel:
    """An ONNX file as `forward(batch) -> logits` on the CPU, so that `task.evaluate(OnnxModel(path))` works.

    `inputs` are the batch keys it reads; the others are left alone. `threads` and `form` say what runs, for measurements.
    Raises ArtifactError for a file that ONNX Runtime cannot load, UsageError for a batch that does not fit.
    """

    def __init__(self, path: Path | str, threads: int | None = None):
        runtime = require("onnxruntime", "onnx")
        self.path = Path(path)
        self.threads = available_threads() if threads is None else threads
        if not self.path.is_file():
            raise ArtifactError(f"there is no ONNX file {self.path}")
        options = session_options(self.threads)
        try:
            self.session = runtime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own classes share no public base
            raise ArtifactError(f"{self.path} cannot be loaded by ONNX Runtime: {first_line(error)}") from error
        self._types = {value.name: _TYPES.get(value.type) for value in self.session.get_inputs()}
        self._output = self.session.get_outputs()[0].name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the batch entries that the file reads."""
        return tuple(self._types)

    @property
    def form(self) -> str:
        """What runs, in words."""
        return f"onnxruntime, {self.threads} thread{'s' if self.threads != 1 else ''}, {self.path.name}"

    def feed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The NumPy arrays that ONNX Runtime takes for a batch."""
        missing = [name for name in self._types if name not in batch]
        if missing:
            raise UsageError(f"{self.path.name} reads {list(self._types)}; the batch has {sorted(batch)}")
        return {
            name: torch.as_tensor(batch[name]).detach().cpu().to(dtype).contiguous().numpy()
            for name, dtype in self._types.items()
        }

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        feed = self.feed(batch)
        try:
            (output,) = self.session.run([self._output], feed)
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in feed.items()}
            wanted = {value.name: value.shape for value in self.session.get_inputs()}
            raise UsageError(
                f"{self.path.name} cannot run on inputs {shapes}; it takes {wanted}: {first_line(error)}"
            ) from error
        return torch.from_numpy(output)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
