"""Size: parameters, bytes as stored and the per-layer table.

Parameters are counted as a model's author counts them: learnable numbers, a tied one once. Bytes are what is really
stored: packed integers as they are, buffers included, non-persistent buffers (which are rebuilt, not stored) excluded.
A quantized module keeps its weight in packed buffers; the numbers it stands for are worked out from its shape.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.errors import DataError
from limbeck.measure.base import Measurement
from limbeck.measure.sessions import external_files
from limbeck.measure.simulated import simulated_modules

MASKS = ("_mask",)  # torch.nn.utils.prune keeps a 0/1 tensor of this name beside each weight


def unique_bytes(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each tensor of a mapping; the second name of the same memory counts 0. Entries that are no tensors are left out."""
    seen, sizes = set(), {}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            continue
        size = value.numel() * value.element_size()
        key = (value.device, value.data_ptr(), size, value.dtype) if value.numel() and value.data_ptr() else object()
        sizes[name] = 0 if key in seen else size
        seen.add(key)
    return sizes


def logical_weights(module: nn.Module) -> int | None:
    """How many weights a linear, convolution or embedding module stands for, from its sizes; None for any other kind."""
    sizes = [getattr(module, name, None) for name in ("in_features", "out_features")]
    if all(isinstance(size, int) for size in sizes):
        return math.prod(sizes)
    sizes = [getattr(module, name, None) for name in ("num_embeddings", "embedding_dim")]
    if all(isinstance(size, int) for size in sizes):
        return math.prod(sizes)
    kernel = getattr(module, "kernel_size", None)
    if isinstance(getattr(module, "in_channels", None), int) and isinstance(kernel, tuple):
        return module.in_channels * module.out_channels // module.groups * math.prod(kernel)
    return None


def is_packed(module: nn.Module) -> bool:
    """Whether a module keeps the weight its sizes speak of in buffers instead of a parameter (a quantized module)."""
    if logical_weights(module) is None:
        return False
    owned = {name.removesuffix("_orig") for name, value in module._parameters.items() if value is not None}
    parametrized = getattr(module, "parametrizations", {})
    buffers = [b for n, b in module._buffers.items() if b is not None and n not in module._non_persistent_buffers_set]
    return "weight" not in owned and "weight" not in parametrized and bool(buffers)


def _own_packed_count(module: nn.Module) -> int:
    """Logical numbers that a packed module keeps in buffers: its weight, and its bias where that is a buffer too."""
    count = logical_weights(module) or 0
    bias = module._buffers.get("bias")
    return count + (bias.numel() if bias is not None else 0)


def count_parameters(model: nn.Module) -> int:
    """Unique parameters of a model, plus the weights that quantized modules hold packed. A shared module counts once."""
    packed = sum(_own_packed_count(module) for module in model.modules() if is_packed(module))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def parameters(model: nn.Module) -> Measurement:
    """`parameters`: unique, tied counted once."""
    return Measurement("parameters", *_exact(count_parameters(model)), unit="parameters", where="torch")


def state_bytes(state: Mapping[str, Any]) -> int:
    """Bytes of a state dict as stored: every distinct tensor once, packed integers as they are."""
    return sum(unique_bytes(state).values())


def model_bytes(model: nn.Module) -> Measurement:
    """`bytes` of a model's state as it would be stored; masks that only simulate sparsity are neither counted nor credited."""
    state = {name: value for name, value in model.state_dict().items() if not name.endswith(MASKS)}
    where = "torch state, dense: nothing simulated is credited" if simulated_modules(model) else "torch state"
    return Measurement("bytes", *_exact(state_bytes(state)), unit="bytes", where=where)


def disk_bytes(path: Path | str) -> Measurement:
    """`bytes` of a file, or of all files below a folder (links are not followed). An ONNX file's external data count.

    Raises DataError when it is missing or empty.
    """
    path = Path(path)
    if path.is_file():
        size = path.stat().st_size
        if path.suffix == ".onnx":
            size += sum(file.stat().st_size for file in external_files(path))
    elif path.is_dir():
        walked = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        size = sum(file.lstat().st_size for file in walked)
    else:
        raise DataError(f"there is no file or folder {path} to measure")
    if not size:
        raise DataError(f"{path} holds no bytes: there is nothing to measure")
    return Measurement("bytes", *_exact(size), unit="bytes", where="file" if path.is_file() else "folder")


def layer_table(model: nn.Module) -> list[dict[str, Any]]:
    """One row per module that owns stored tensors: `{"path", "kind", "parameters", "bytes", "bits"}`, in model order.

    A tensor belongs to the first module that names it, so the rows add up to the model's parameters and bytes. `bits`
    is the width of the weight: what a quantized module says it is, else that of the module's largest tensor.
    """
    return list(_rows(model))


def _rows(model: nn.Module) -> Iterator[dict[str, Any]]:
    modules = dict(model.named_modules())
    state = {name: value for name, value in model.state_dict(keep_vars=True).items() if not name.endswith(MASKS)}
    sizes, owned = unique_bytes(state), {}
    for name, size in sizes.items():
        if size:
            owned.setdefault(_owner(name, modules), []).append(name)
    for path in modules:  # model order, not the order of the state
        if path not in owned:
            continue
        module, names = modules[path], owned[path]
        count = sum(state[name].numel() for name in names if isinstance(state[name], nn.Parameter))
        yield {
            "path": path or "(model)",
            "kind": type(module).__name__,
            "parameters": count + (_own_packed_count(module) if is_packed(module) else 0),
            "bytes": sum(sizes[name] for name in names),
            "bits": weight_bits(module, [state[name] for name in names]),
        }


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    path = name.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path


def weight_bits(module: nn.Module, tensors: list[Tensor]) -> float:
    """Bits per weight: the `bits` a packed module declares, else those of its largest tensor's type."""
    bits = getattr(module, "bits", None)
    if is_packed(module) and isinstance(bits, (int, float)):
        return bits
    largest = max(tensors, key=lambda tensor: tensor.numel())
    return largest.element_size() * 8


def _exact(value: int) -> tuple[float]:
    return (value,)
