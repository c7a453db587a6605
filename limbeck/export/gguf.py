"""GGUF files of llama-family models: for llama.cpp and what is built on it.

    model --(names, head order, blocks)--> temporary file --(gguf package: dequantize, compare)--> FILE

Weights are written as the blocks that their grid fits exactly (see `limbeck.export.gguf_blocks`), never rounded again unless `requantize`
says so. All else stays in the model's own float type, norms and biases in float32. llama.cpp turns neighbouring pairs of a head's numbers,
transformers the two halves of a head; so the rows of llama's and mistral's query and key projections are put in the other order:

    row (head, half, pair)  ->  row (head, pair, half)

The file is read back with the package gguf: every tensor must be the model's, bit for bit, and the outputs the same.
llama.cpp itself computes float files to 1e-6 of the largest output, and quantized ones to about 1e-2, since it rounds activations to 8 bits.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, UsageError, did_you_mean, require
from limbeck.export.float_form import float_state, skeleton
from limbeck.export.gguf_blocks import BLOCK, blocks_of
from limbeck.export.gguf_tokenizer import add_tokenizer
from limbeck.export.integers import integer_weight, quantized_layers, weight_only_linears
from limbeck.export.quantized_folder import difference
from limbeck.export.runtime import first_line
from limbeck.export.transformers_folder import example_of
from limbeck.files import replacing

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}  # model_type -> architecture of GGUF
PERMUTED = ("llama",)
REQUANTIZE = ("q8_0", "q5_0", "q4_1", "q4_0")
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q4_K": 14}
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TOLERANCE = {False: 1e-4, True: 0.5}  # requantized or not -> of the largest output


def export_gguf(
    model: nn.Module,
    task_or_example: Any,
    path: Path | str,
    *,
    tokenizer: Any = None,
    requantize: str | None = None,
) -> float:
    """Write a llama, mistral or qwen2 model as one GGUF file, read it again, and return the largest difference of its outputs, relative to
    the largest.

    task_or_example  a Task or a batch of example inputs for the comparison; None: the model's own `dummy_inputs`
    tokenizer        a transformers tokenizer; None: the task's; False, or where there is none: a file that knows only token numbers
    requantize       "q8_0", "q5_0", "q4_1" or "q4_0": round every linear layer anew, whatever its grid is. None: exact, or ExportError

    Raises UsageError for another kind of model and settings that are not there, ExportError for grids, shapes and settings of the
    architecture that GGUF cannot hold, and when what is read back differs. Nothing is left at `path` then.
    """
    gguf = require("gguf", "gguf")
    path = Path(path)
    if requantize is not None and requantize not in REQUANTIZE:
        raise UsageError(f"requantize={requantize!r}. {did_you_mean(str(requantize), REQUANTIZE)}")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ARCHITECTURES or not hasattr(model, "lm_head"):
        raise UsageError(
            f"{type(model).__name__} has no GGUF form here: causal language models of {', '.join(ARCHITECTURES)} have one"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file such as model.gguf")
    plain = skeleton(model)
    tensors = _tensors(model, plain, requantize)
    inputs = example_of(model, task_or_example)
    if tokenizer is None:
        tokenizer = getattr(task_or_example, "tokenizer", None)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(str(temporary), ARCHITECTURES[kind])
        try:
            _describe(writer, plain.config, [kind for kind, _ in tensors.values()])
            add_tokenizer(writer, tokenizer or None, plain.config)
            names = gguf.get_tensor_name_map(_architecture(gguf, kind), plain.config.num_hidden_layers)
            for name, (raw, data) in tensors.items():
                writer.add_tensor(_name(names, name), data, raw_dtype=gguf.GGMLQuantizationType[raw])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        again = load_gguf(model, temporary)
        if requantize is None:
            _same_weights(float_state(model, plain), again)
        return difference(model, again, inputs, TOLERANCE[requantize is not None])


def _architecture(gguf: Any, kind: str) -> Any:
    return {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[ARCHITECTURES[kind]]


def _name(names: Any, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ExportError(f"GGUF has no name for {name} in this architecture")
    return found


def _heads(config: Any) -> dict[str, int]:
    """Heads of the projections whose rows are reordered, by the end of their path; none where the architecture rotates halves."""
    if ARCHITECTURES[config.model_type] not in PERMUTED:
        return {}
    return {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}


def row_order(rows: int, heads: int) -> Tensor:
    """Which row of transformers' projection is at each place of llama.cpp's: (heads, 2, pairs) -> (heads, pairs, 2)."""
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).reshape(-1)


def _tensors(model: nn.Module, plain: nn.Module, requantize: str | None) -> dict[str, tuple[str, np.ndarray]]:
    """GGUF type and data of every tensor, by its name in transformers."""
    from gguf.quants import quantize

    linears = {path for path, module in plain.named_modules() if isinstance(module, nn.Linear)}
    exact: dict[str, tuple[str, np.ndarray]] = {}
    if requantize is None and quantized_layers(model):
        for path, module in weight_only_linears(model, "gguf").items():
            exact[f"{path}.weight"] = blocks_of(integer_weight(path, module))
    made: dict[str, tuple[str, np.ndarray]] = {}
    heads = _heads(plain.config)
    for name, tensor in float_state(model, plain).items():
        path = name.rpartition(".")[0]
        if name in exact:
            kind, data = exact[name]
        elif requantize is not None and path in linears and name.endswith(".weight"):
            kind, data = _requantized(path, tensor, requantize, quantize)
        else:
            kind, data = _plain(tensor)
        for end, count in heads.items():
            if path.endswith(end):
                data = data[row_order(len(data), count).numpy()]
        made[name] = (kind, np.ascontiguousarray(data))
    return made


def _requantized(path: str, weight: Tensor, requantize: str, quantize: Any) -> tuple[str, np.ndarray]:
    from gguf import GGMLQuantizationType

    if weight.shape[1] % BLOCK:
        raise ExportError(f"{path}: rows of {weight.shape[1]} are no whole blocks of 32, as {requantize} wants")
    kind = requantize.upper()
    return kind, quantize(weight.float().numpy(), GGMLQuantizationType[kind])


def _plain(tensor: Tensor) -> tuple[str, np.ndarray]:
    """Vectors in float32, matrices in their own type."""
    kind = "F32" if tensor.dim() < 2 else FLOATS.get(tensor.dtype, "F32")
    if kind == "BF16":
        return kind, tensor.view(torch.uint8).numpy()
    return kind, (tensor.float() if kind == "F32" else tensor).numpy()


def _describe(writer: Any, config: Any, kinds: list[str]) -> None:
    """The architecture's numbers. Raises ExportError for settings that llama.cpp would not know of."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    scaling = rope.get("rope_type", "default")
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    for there, what in (
        (scaling != "default", f"rotary positions of type {scaling!r}"),
        (config.hidden_act not in ("silu", "swish"), f"the activation {config.hidden_act!r}"),
        (window is not None and window < config.max_position_embeddings, f"a sliding window of {window}"),
    ):
        if there:
            raise ExportError(f"{what} cannot be written as GGUF here")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # not the model type: of a llama that is named "mistral" transformers makes a mistral, and fails on the names of its tensors
    writer.add_name(ARCHITECTURES[config.model_type])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)))
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(FILE_TYPES[max(sorted(set(kinds) - {"F32"}) or ["F32"], key=kinds.count)])
    writer.add_quantization_version(2)


def load_gguf(model: nn.Module, path: Path | str) -> nn.Module:
    """The float model that a GGUF file stands for, an architecture like the model's. Raises ExportError for a file that cannot be read
    or is of another architecture or shape."""
    gguf = require("gguf", "gguf")
    plain = skeleton(model)
    config = plain.config
    try:
        reader = gguf.GGUFReader(str(path))
        stored = {tensor.name: tensor for tensor in reader.tensors}
        names = gguf.get_tensor_name_map(_architecture(gguf, config.model_type), config.num_hidden_layers)
        heads, state = _heads(config), {}
        for name in float_state(model, plain):
            tensor = stored.pop(_name(names, name))
            values = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32))
            for end, count in heads.items():
                if name.rpartition(".")[0].endswith(end):
                    values = values[row_order(len(values), count).argsort()]
            state[name] = values
    except Exception as error:  # the package raises whatever a damaged file leads to
        raise ExportError(f"{path} cannot be read as a GGUF file of this model: {first_line(error)}") from error
    made = type(model)(copy.deepcopy(config)).float()
    try:
        found = made.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ExportError(f"{path} holds tensors of other shapes: {first_line(error)}") from error
    made.tie_weights()
    missing = sorted(set(found.missing_keys) - set(getattr(made, "_tied_weights_keys", None) or ()))
    if stored or missing or found.unexpected_keys:
        raise ExportError(
            f"{path} holds other tensors than the model: {[*stored, *missing, *found.unexpected_keys][:3]}"
        )
    return made.eval()


def _same_weights(expected: dict[str, Tensor], again: nn.Module) -> None:
    found = again.state_dict()
    for name, tensor in expected.items():
        if not torch.equal(found[name], tensor.float()):
            raise ExportError(f"{name} is read back with other values than were written; nothing was kept")
