"""Folders in the layout of compressed-tensors, which transformers and vLLM load.

| model                              | format          | stored per layer                                                                       |
|------------------------------------|-----------------|----------------------------------------------------------------------------------------|
| weights only; 2, 4 or 8 bits       | pack-quantized  | weight_packed int32: 32 / bits codes a word, counted from the smallest, lowest bits    |
|                                    |                 | first; weight_scale; weight_shape; weight_zero_point packed along the outputs          |
| 8 bits, static or dynamic inputs   | int-quantized   | weight int8, weight_scale; with static inputs input_scale and input_zero_point         |

With zero points, load with `from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))`: transformers 5.23 with
compressed-tensors 0.20 expects unpacked zero points where weights stay compressed, and refuses packed ones.

Codes and scales are the stored ones; widths of 3 and of 5 to 7 bits take 4 and 8 bits. With dynamic inputs compressed-tensors has
one step more per token than Limbeck (its range ends at 127.5 steps, ours at 127), so outputs differ by part of a step.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, UsageError, require
from limbeck.export.float_form import skeleton
from limbeck.export.integers import IntegerWeight, integer_weight, quantized_layers
from limbeck.export.packed_words import words
from limbeck.export.quantized_folder import check_source, other_linears, write_folder
from limbeck.export.runtime import first_line
from limbeck.pruning.slicing import is_conv1d
from limbeck.quantization.granularity import PerGroup, PerTensor
from limbeck.quantization.modules import QuantizedLinear
from limbeck.quantization.specification import DynamicRange, InputRange, Specification

FORM = "compressed_tensors"
WIDTHS = (2, 4, 8)
TOLERANCE = {False: 1e-4, True: 0.1}  # inputs chosen while running or not -> of the largest output


def export_compressed_tensors(
    model: nn.Module, task_or_example: Any, folder: Path | str, *, tokenizer: Any = None
) -> float:
    """Write a quantized transformers model as a compressed-tensors folder, load it with transformers, and return the largest difference
    of its outputs, relative to the largest.

    task_or_example, tokenizer: as in `export_transformers`. Raises UsageError when the model is no transformers PreTrainedModel, nothing
    in it is quantized, or `folder` is there and not empty; ExportError for what compressed-tensors cannot hold (other grids, real
    offsets, convolutions, the Conv1D of GPT-2) and when the outputs differ.
    """
    folder = Path(folder)
    check_source(model, folder, FORM)
    require("compressed_tensors", "compressed-tensors")
    quantized = quantized_layers(model)
    if not quantized:
        raise UsageError(f"{type(model).__name__} holds no quantized module: apply a quantize step before this export")
    plain = dict(skeleton(model).named_modules())
    stored: dict[str, dict[str, Tensor]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for path, module in quantized.items():
        if not isinstance(module, QuantizedLinear) or is_conv1d(plain[path]):
            kind = type(plain[path]).__name__
            raise ExportError(
                f"{path}: compressed-tensors holds Linear layers only, this is a {kind}; export it to ONNX or gptq"
            )
        weight = integer_weight(path, module)
        stored[path], scheme = _layer(weight, module.specification)
        groups.setdefault(str(scheme), {**scheme, "targets": []})["targets"].append(path)
    if len(groups) > 1 and not all(group["weights"]["symmetric"] for group in groups.values()):
        raise ExportError(
            "layers of several widths or group sizes with zero points: transformers would read all of them by the first; quantize with "
            "symmetric: true, or export to ONNX"
        )
    if len(groups) == 1:
        next(iter(groups.values()))["targets"] = ["Linear"]
    formats = sorted({group["format"] for group in groups.values()})
    settings = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups.values())},
        "ignore": other_linears(model),
    }
    dynamic = any(isinstance(module.specification.input, DynamicRange) for module in quantized.values())

    def reload(at: Path) -> nn.Module:
        return load_compressed_tensors(model, at)

    return write_folder(model, folder, stored, settings, task_or_example, tokenizer, reload, TOLERANCE[dynamic])


def load_compressed_tensors(model: nn.Module, folder: Path | str) -> nn.Module:
    """What transformers loads from a folder, as a model of the same class, its weights dequantized on the way where a zero point is
    packed. Raises ExportError for a folder that it cannot load."""
    from transformers import AutoConfig, CompressedTensorsConfig

    more: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        groups = AutoConfig.from_pretrained(folder, **more).quantization_config["config_groups"].values()
        if not all(group["weights"]["symmetric"] for group in groups):
            more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
        with contextlib.redirect_stderr(io.StringIO()), torch.no_grad():  # progress bars of the packages below
            made = type(model).from_pretrained(folder, use_safetensors=True, **more).eval()
            made(**{made.main_input_name: torch.zeros(1, 1, dtype=torch.long)})  # the first pass decompresses
        return made
    except Exception as error:
        raise ExportError(f"transformers cannot load what was written: {first_line(error)}") from error


def _layer(weight: IntegerWeight, specification: Specification) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What is stored of a layer, and its scheme."""
    if weight.offset is not None:
        raise ExportError(
            f"{weight.path}: compressed-tensors has whole zero points, no real offsets; quantize with grid: integer"
        )
    bits, granularity, inputs = weight.wider(WIDTHS), specification.granularity, specification.input
    if isinstance(granularity, PerGroup) and weight.shape[1] % granularity.size:
        raise ExportError(
            f"{weight.path}: its {weight.shape[1]} inputs do not divide into groups of {granularity.size}, as "
            "compressed-tensors wants"
        )
    args: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": weight.symmetric, "dynamic": False}
    if isinstance(granularity, PerGroup):
        args |= {"strategy": "group", "group_size": granularity.size}
    else:
        args |= {"strategy": "tensor" if isinstance(granularity, PerTensor) else "channel"}
    scale = weight.scale[:1, 0] if isinstance(granularity, PerTensor) else weight.scale
    if inputs is not None:
        return _integer_product(weight, scale, args, inputs)
    codes, zero = weight.unsigned(bits)
    tensors = {
        "weight_packed": words(codes, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not weight.symmetric:
        if isinstance(granularity, PerTensor):
            raise ExportError(
                f"{weight.path}: compressed-tensors packs zero points per output or group; quantize with weights: channel"
            )
        tensors["weight_zero_point"] = words(zero, bits, axis=0)
    return tensors, {"format": "pack-quantized", "weights": args, "input_activations": None, "output_activations": None}


def _integer_product(
    weight: IntegerWeight, scale: Tensor, args: dict[str, Any], inputs: InputRange | DynamicRange
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Integer weights times integer inputs."""
    if not weight.symmetric or args["strategy"] == "group":
        raise ExportError(
            f"{weight.path}: with integer inputs, weights have one scale per output or tensor and no zero point"
        )
    tensors = {"weight": weight.codes.to(torch.int8), "weight_scale": scale}
    activations: dict[str, Any] = {"num_bits": 8, "type": "int"}
    if inputs.bits != 8:
        raise ExportError(f"{weight.path}: its inputs have {inputs.bits} bits; quantize with activation_bits: 8")
    if isinstance(inputs, InputRange):
        activations |= {"symmetric": False, "strategy": "tensor", "dynamic": False}
        tensors["input_scale"] = torch.tensor([inputs.scale])
        tensors["input_zero_point"] = torch.tensor([inputs.zero_point - 128], dtype=torch.int8)
    else:
        activations |= {"symmetric": True, "strategy": "token", "dynamic": True}
    scheme = {"format": "int-quantized", "weights": {**args, "num_bits": 8}, "input_activations": activations}
    return tensors, {**scheme, "output_activations": None}
