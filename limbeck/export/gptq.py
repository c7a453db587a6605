"""Folders in the layout of GPTQ checkpoints (AutoGPTQ, GPTQModel, vLLM), whatever way of rounding made the codes.

Per layer of n inputs and m outputs, with b bits and groups of g inputs:

    qweight  int32 (n b / 32, m)            32 / b codes of consecutive inputs a word, the first in the lowest bits
    qzeros   int32 (ceil(n / g), m b / 32)  zero points, packed in the same way along the outputs
    scales   float16 (ceil(n / g), m)
    g_idx    int32 (n)                      the group of each input

    w[j, i] = scales[g_idx[i], j] (q[i, j] - z[g_idx[i], j])

The first version of the layout ("gptq") stores z - 1, and cannot hold z = 0; where that occurs the second ("gptq_v2") is written, which stores z.
transformers loads such folders with the packages optimum and gptqmodel, its heads as float layers. Tried with 5.23 and GPTQModel 7.7 on the CPU,
`GPTQConfig(bits=..., backend="torch")`: llamas of 4 and 8 bits give the same outputs, to 4e-4 of the largest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, UsageError
from limbeck.export.float_form import with_weights
from limbeck.export.integers import IntegerWeight, half_scales, integer_weight, weight_only_linears
from limbeck.export.packed_words import unpack_words, words
from limbeck.export.quantized_folder import check_source, other_linears, stored_tensors, write_folder

FORM = "gptq"
WIDTHS = (2, 4, 8)
TOLERANCE = 1e-4


def export_gptq(model: nn.Module, task_or_example: Any, folder: Path | str, *, tokenizer: Any = None) -> float:
    """Write a transformers model with quantized weights as a GPTQ folder, unpack it again, and return the largest difference of the
    outputs, relative to the largest.

    All quantized layers have one width, one group size and zero points or none; widths of 3 and of 5 to 7 bits take 4 and 8 bits. Heads (layers
    outside the base model) are stored as the float weights that their codes stand for, since transformers reads them so.
    task_or_example, tokenizer: as in `export_transformers`. Raises UsageError when the model is no transformers PreTrainedModel, nothing
    in it is quantized, or `folder` is there and not empty; ExportError for what the layout cannot hold.
    """
    folder = Path(folder)
    check_source(model, folder, FORM)
    linears = weight_only_linears(model, FORM)
    heads = [path for path in linears if is_head(model, path)]
    weights = [integer_weight(path, module) for path, module in linears.items() if path not in heads]
    if not weights:
        raise UsageError(
            f"only {heads} are quantized, and a GPTQ folder holds heads in float: quantize layers of the blocks"
        )
    bits, group, symmetric = _shared(weights)
    second = any(weight.zero is not None and bool((weight.zero == 0).any()) for weight in weights)
    stored = {weight.path: _layer(weight, bits, second) for weight in weights}
    left = [*other_linears(model), *heads]
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "checkpoint_format": "gptq_v2" if second else "gptq",
        "lm_head": False,
        "dynamic": {f"-:^{path.replace('.', chr(92) + '.')}$": {} for path in left if path != "lm_head"},
    }
    return write_folder(
        model, folder, stored, settings, task_or_example, tokenizer, lambda at: load_gptq(model, at), TOLERANCE
    )


def is_head(model: nn.Module, path: str) -> bool:
    """Whether a layer lies outside the base model: transformers makes no GPTQ layers of those."""
    prefix = model.base_model_prefix
    return hasattr(model, prefix) and not path.startswith(f"{prefix}.")


def _shared(weights: list[IntegerWeight]) -> tuple[int, int, bool]:
    """Bits, group size (-1: one per output) and symmetry of all layers."""
    whole = all(weight.group == weight.shape[1] for weight in weights)
    bits = {weight.wider(WIDTHS) for weight in weights}
    groups = {-1} if whole else {weight.group for weight in weights}
    symmetric = {weight.symmetric for weight in weights}
    for name, found in (("widths", bits), ("group sizes", groups), ("kinds of zero points", symmetric)):
        if len(found) > 1:
            raise ExportError(
                f"the quantized layers have several {name} ({sorted(found)}), a GPTQ folder has one for all; export to "
                "compressed_tensors or onnx_weight_only"
            )
    return bits.pop(), groups.pop(), symmetric.pop()


def _layer(weight: IntegerWeight, bits: int, second: bool) -> dict[str, Tensor]:
    if weight.offset is not None:
        raise ExportError(f"{weight.path}: GPTQ has whole zero points, no real offsets; quantize with grid: integer")
    out, columns = weight.shape
    if columns * bits % 32 or out * bits % 32:
        raise ExportError(
            f"{weight.path}: its weight ({out}, {columns}) does not fill words of {32 // bits} codes in both directions, as GPTQ wants; "
            "leave it out of the quantize step (ignore)"
        )
    codes, zero = weight.unsigned(bits)
    stored_zero = zero if second else zero - 1
    return {
        "qweight": words(codes.t(), bits, axis=0),
        "qzeros": words(stored_zero.t(), bits),
        "scales": half_scales(weight, FORM).t(),
        "g_idx": (torch.arange(columns) // weight.group).to(torch.int32),
    }


def load_gptq(model: nn.Module, folder: Path | str) -> nn.Module:
    """The model with the weights that a GPTQ folder stands for, in float: unpacked here, without gptqmodel.

    Raises ExportError for tensors that are missing, of another shape, or not those of the layout.
    """
    from transformers import AutoConfig

    folder = Path(folder)
    tensors = stored_tensors(folder)
    settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).quantization_config
    bits, second = settings["bits"], settings["checkpoint_format"] == "gptq_v2"
    weights = {}
    for path, module in weight_only_linears(model, FORM).items():
        out, columns = module.matrix_shape
        try:
            if is_head(model, path):
                weights[path] = tensors[f"{path}.weight"].float()
                continue
            qweight, qzeros, scales, index = (tensors[f"{path}.{n}"] for n in ("qweight", "qzeros", "scales", "g_idx"))
            codes = unpack_words(qweight, bits, columns, axis=0)
            zero = unpack_words(qzeros, bits, out) + (0 if second else 1)
            weights[path] = (scales.float()[index.long()] * (codes - zero[index.long()])).t().contiguous()
            if weights[path].shape != (out, columns):
                raise ValueError(f"a weight of {tuple(weights[path].shape)}, not {(out, columns)}")
        except (KeyError, ValueError, IndexError, RuntimeError) as error:
            raise ExportError(f"{folder}: the GPTQ tensors of {path} cannot be read: {error}") from error
    return with_weights(model, weights).float()
