"""ONNX Runtime sessions: how they are opened, fed and described wherever a number is measured on an exported model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError, require
from limbeck.signals import TARGETS

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def open_session(path: Path | str, threads: int | None = None) -> Any:
    """An InferenceSession on the CPU with this many threads (None: as many as torch uses).

    Raises ArtifactError for a file that is missing or that ONNX Runtime refuses.
    """
    runtime = require("onnxruntime", "onnx")
    if not Path(path).is_file():
        raise ArtifactError(f"there is no ONNX file {path}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: at least one thread is needed")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has a class per failure and no common base
        raise ArtifactError(f"ONNX Runtime refuses {path}: {str(error).splitlines()[0]}") from error


def session_threads(session: Any) -> int:
    """The intra-operation threads of a session; 0 in its options means one per physical core."""
    import psutil

    chosen = session.get_session_options().intra_op_num_threads
    return chosen or psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def feeds(session: Any, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A batch as the session's inputs: by name, or in order when none of the names agree; types follow the session's.

    Raises UsageError when an input has no entry or when a fixed dimension of the graph differs from the batch's.
    """
    entries = {
        name: value for name, value in batch.items() if name not in TARGETS and isinstance(value, (Tensor, np.ndarray))
    }
    inputs = session.get_inputs()
    if not {item.name for item in inputs} & set(entries) and len(entries) >= len(inputs):
        entries = dict(zip([item.name for item in inputs], entries.values()))
    missing = [item.name for item in inputs if item.name not in entries]
    if missing:
        raise UsageError(f"the ONNX model reads {missing}, the batch has {sorted(entries)}")
    made = {}
    for item in inputs:
        value = entries[item.name]
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        made[item.name] = np.ascontiguousarray(array, dtype=TYPES.get(item.type))
        fixed = [
            (i, d)
            for i, d in enumerate(item.shape or [])
            if isinstance(d, int) and i < array.ndim and array.shape[i] != d
        ]
        if fixed:
            axis, size = fixed[0]
            raise UsageError(
                f"the ONNX model's input {item.name!r} is fixed to {size} on axis {axis}, the batch has {array.shape[axis]}. "
                "Export it with a dynamic axis there, or measure at that size."
            )
    return made


def feeds_for(session: Any, task: Any, batch_size: int) -> dict[str, np.ndarray]:
    """The task's example inputs as the session's inputs."""
    return feeds(session, task.example(batch_size))


def fixed_batch_size(session: Any) -> int | None:
    """The batch size a graph is fixed to, or None when it is free."""
    shapes = [item.shape for item in session.get_inputs() if item.shape]
    return next((shape[0] for shape in shapes if isinstance(shape[0], int)), None)


def onnx_forward(session: Any):
    """`forward(batch) -> logits`, the form `task.evaluate` wants, over a session's first output.

    A graph with a fixed batch size is run in pieces of that size; a short last piece is filled up with its last item.
    """
    size = fixed_batch_size(session)

    def forward(batch: Mapping[str, Any]) -> Tensor:
        entries = {k: v for k, v in batch.items() if k not in TARGETS and isinstance(v, Tensor)}
        count = len(next(iter(entries.values())))
        if size is None or size == count:
            return torch.from_numpy(session.run(None, feeds(session, entries))[0])
        pieces = []
        for start in range(0, count, size):
            index = torch.arange(start, start + size).clamp(max=count - 1)
            piece = {name: value[index] for name, value in entries.items()}
            pieces.append(torch.from_numpy(session.run(None, feeds(session, piece))[0])[: min(size, count - start)])
        return torch.cat(pieces)

    return forward


def external_files(path: Path | str) -> list[Path]:
    """Files beside an ONNX file that hold weights too large for it; empty for a file that is no readable ONNX."""
    onnx = require("onnx", "onnx")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # what cannot be read has no parts; who runs it says why
        return []
    entries = [entry for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"]
    found = [Path(path).parent / entry.value for entry in entries]
    return [file for file in dict.fromkeys(found) if file.is_file()]


def session_form(session: Any) -> str:
    """The form of a session's model in words: `onnxruntime float32`, `onnxruntime int8 QDQ`, ...: from the file's own graph."""
    path = getattr(session, "_model_path", None)
    return onnx_form(path) if path else "onnxruntime"


def onnx_form(path: Path | str) -> str:
    """`onnxruntime` and how its weights are stored and computed with, read from the graph's operators and initializers."""
    onnx = require("onnx", "onnx")
    graph = onnx.load(str(path), load_external_data=False).graph
    kinds = {node.op_type for node in graph.node}
    if kinds & {
        "DynamicQuantizeLinear",
        "DynamicQuantizeLSTM",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
    }:
        return "onnxruntime int8 dynamic"
    if "MatMulNBits" in kinds:
        return "onnxruntime int4 weights"
    if "DequantizeLinear" in kinds:
        return "onnxruntime int8 QDQ" if "QuantizeLinear" in kinds else "onnxruntime int8 weights"
    if kinds & {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat"}:
        return "onnxruntime int8"
    types = [onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer]
    return "onnxruntime float16" if types.count("FLOAT16") > types.count("FLOAT") else "onnxruntime float32"
