"""A folder of transformers that is larger than memory, to a quantized model that is not.

    model = quantize_folder("llama-70b", Quantize(bits=4, weights=128, activations=None, rounding="gptq"), task)
    limbeck.save(model, "small")

Weights are read when they are due and dropped when they are rounded (see `shards`). What stays is the quantized model: packed weights,
embeddings, norms, biases, and a head that is tied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.build import lineage, with_lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.memory import give_back
from limbeck.models.pretrained import transformer
from limbeck.plan import Plan
from limbeck.quantization.contract import Packed
from limbeck.quantization.modules import QuantizedModule
from limbeck.quantization.quantize import KIND, Quantize, entries
from limbeck.quantization.replacement import float_weight_of, quantized, replace
from limbeck.quantization.rounding import as_rounding
from limbeck.quantization.shards import Shards, empty, fill, round_shards
from limbeck.vocabulary import describe


def quantize_folder(
    folder: Path | str, quantize: Quantize, task: Any = None, auto_class: str = "AutoModelForCausalLM"
) -> nn.Module:
    """The quantized model of a transformers folder (config.json and safetensors, one file or several with their index), in
    evaluation mode, with its lineage: `limbeck.save` writes it, and it loads like any other.

    quantize: with activations "dynamic" or None; task: for ways of rounding that read data. The result is that of
    `apply(load_pretrained(folder), quantize.plan(...))`, without the float model in memory.
    Raises UsageError for static activations and a missing task, ArtifactError for a folder without config or weights, with code of its own,
    with tensors under other names than the model's (architectures whose files transformers converts), or damaged.
    """
    rounding = as_rounding(quantize.rounding)
    if quantize.activations == "static":
        raise UsageError("quantize_folder: static activations need the whole model; take activations dynamic or null")
    if rounding is not None and rounding.reads_data and task is None:
        raise UsageError(f"{type(rounding).__name__} reads a task's train split and no task was given: pass one")
    shards, settings = Shards(folder), _config(Path(folder))
    model = empty(lambda: transformer(auto_class, settings))
    plan = quantize.plan_modules(model)
    chosen = {path: specification for path, _, specification in entries(model, plan)}
    quantizers = {path: specification.quantizer for path, specification in chosen.items()}
    found: dict[str, Packed] = {}
    changed: dict[str, Any] = {}
    if rounding is not None and rounding.reads_data:
        batches = list(task.batches("train", quantize.batch_size, limit=quantize.examples))
        found = dict(round_shards(model, shards, batches, quantizers, rounding, changed))
    for path, specification in chosen.items():
        module = model.get_submodule(path)
        if path not in found:
            weight = float_weight_of(module, shards.read([f"{path}.weight"])[f"{path}.weight"]).flatten(1).float()
            data_free = rounding is not None and not rounding.reads_data
            found[path] = rounding.layer(weight, None, quantizers[path]) if data_free else specification.encode(weight)
        replace(model, path, _holding(quantized(module, specification), found.pop(path)))
        give_back()
    fill(model, "", shards)
    for name, value in changed.items():
        model.get_parameter(name).data.copy_(value)
    decisions = {**plan.decisions, **({"rounding": describe(rounding)} if rounding is not None else {})}
    past = lineage(model)
    return with_lineage(model.eval(), past.factory, [*past.plans, Plan(KIND, decisions)])


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads((folder / "config.json").read_text())
        if not isinstance(settings, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} holds no readable config.json: {error}") from error
    return {**{k: v for k, v in settings.items() if k != "torch_dtype"}, "dtype": "float32"}


def _holding(module: QuantizedModule, packed: Packed) -> QuantizedModule:
    """A module without data, with this weight."""
    for name, value in packed.tensors.items():
        setattr(module, f"weight_{name}", value)
    return module
