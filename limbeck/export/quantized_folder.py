"""A transformers folder whose linear layers are stored quantized, in whatever layout: config.json, model.safetensors, tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, UsageError, require
from limbeck.export.float_form import float_state, skeleton
from limbeck.export.onnx import in_float32
from limbeck.export.transformers_folder import example_of, write_tokenizer
from limbeck.folders import replacing_folder
from limbeck.quantization.kernels import plain_kernels
from limbeck.quantization.modules import QuantizedLinear
from limbeck.signals import call, first_tensor

Stored = Mapping[str, Mapping[str, Tensor]]  # path of a module -> name in the file -> tensor


def check_source(model: nn.Module, folder: Path, form: str) -> None:
    """Raise UsageError for a model that transformers does not know, and for a folder that holds something."""
    transformers = require("transformers", "transformers")
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(f"{type(model).__name__} is not a transformers PreTrainedModel, which {form} folders hold")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another")


def write_folder(
    model: nn.Module,
    folder: Path,
    stored: Stored,
    settings: Mapping[str, Any],
    task_or_example: Any,
    tokenizer: Any,
    reload: Callable[[Path], nn.Module],
    tolerance: float,
) -> float:
    """Write the folder, read it again and return the largest difference of its outputs, relative to the largest output.

    stored    what stands for the weights of quantized modules; their biases and all other tensors are written as they are
    settings  the config's `quantization_config`

    Raises ExportError, leaving nothing behind, when what was written cannot be read or differs by more than `tolerance`.
    """
    from safetensors.torch import save_file

    plain = skeleton(model)
    tensors = {
        name: tensor
        for name, tensor in float_state(model, plain).items()
        if name.rpartition(".weight")[0] not in stored
    }
    for path, parts in stored.items():
        tensors |= {f"{path}.{name}": tensor.contiguous() for name, tensor in parts.items()}
    config = plain.config
    config.quantization_config = dict(settings)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    inputs = example_of(model, task_or_example)
    with replacing_folder(folder) as at:
        config.save_pretrained(at)
        save_file(tensors, str(at / "model.safetensors"), metadata={"format": "pt"})
        write_tokenizer(getattr(task_or_example, "tokenizer", None) if tokenizer is None else tokenizer, at)
        return difference(model, reload(at), inputs, tolerance)


def difference(model: nn.Module, again: nn.Module, inputs: Mapping[str, Tensor], tolerance: float) -> float:
    """The largest difference of the outputs of a quantized model and of what was read again, relative to the largest output of the
    model on its dequantizing path. Raises ExportError beyond the tolerance."""
    reference = in_float32(copy.deepcopy(model)).eval()
    with torch.no_grad(), plain_kernels():
        expected = first_tensor(call(reference, inputs)).float()
        found = first_tensor(call(again.eval(), inputs)).float()
    if expected.shape != found.shape:
        raise ExportError(f"what was written gives outputs of {tuple(found.shape)}, not {tuple(expected.shape)}")
    worst = float((expected - found).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not worst <= tolerance:
        raise ExportError(
            f"what was written gives other outputs, by {worst:.3g} of the largest; {tolerance:g} is allowed. Nothing was kept"
        )
    return worst


def other_linears(model: nn.Module) -> list[str]:
    """Paths of linear layers that stayed float."""
    return [
        path for path, m in model.named_modules() if isinstance(m, nn.Linear) and not isinstance(m, QuantizedLinear)
    ]


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's model.safetensors. Raises ExportError for a file that cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / "model.safetensors"))
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
