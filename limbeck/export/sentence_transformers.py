"""Write a sentence encoder as a folder that `SentenceTransformer(folder)` loads, with the same embeddings."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.datasets.tokenize import load_tokenizer, save_tokenizer
from limbeck.errors import ExportError, UsageError
from limbeck.files import write_bytes, write_json
from limbeck.models.sentence_encoder import ACTIVATIONS, SentenceEncoder, resolve_folder

ACTIVATION_NAMES = {"tanh": "torch.nn.modules.activation.Tanh", "identity": "torch.nn.modules.linear.Identity"}


def export_sentence_transformers(
    model: nn.Module, folder: Path | str, tokenizer_from: Any, length: int = 256, lower_case: bool = False
) -> Path:
    """Write modules.json, the transformer (config.json, model.safetensors), pooling, dense, normalize and the tokenizer.

    tokenizer_from: a transformers tokenizer, or the folder or hub name that holds it. length: tokens at most.
    lower_case: lower-case texts before the tokenizer, for tokenizers that leave it to the model.

    Layers that were dropped and feed-forward neurons that were pruned alike in all layers become the config's numbers. Raises
    UsageError for a model that is no SentenceEncoder, and ExportError for a shape that no config of the transformer describes
    (heads pruned, layers of different width) or weights that are not plain: quantized, factorized.
    """
    if not isinstance(model, SentenceEncoder):
        raise UsageError(
            f"only a sentence encoder is written in the sentence-transformers layout, not {type(model).__name__}: "
            "see limbeck.models.load_sentence_encoder"
        )
    folder = Path(folder)
    config = described(model)
    weights = {key: value.detach().cpu().contiguous() for key, value in model.transformer.state_dict().items()}
    _write_transformer(config, weights, folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    pooling = {"word_embedding_dimension": config["hidden_size"]}
    pooling |= {
        f"pooling_mode_{mode}": mode.startswith(model.pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")
    }
    write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_mean_sqrt_len_tokens": False})
    if model.dense is not None:
        kinds.append(("Dense", "2_Dense"))
        _write_dense(model, folder / "2_Dense")
    if model.normalize:
        kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
    tokenizer = tokenizer_from
    if isinstance(tokenizer_from, (str, Path)):
        tokenizer = load_tokenizer(str(resolve_folder(tokenizer_from)))
    save_tokenizer(tokenizer, folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": lower_case})
    write_json(  # last: its presence says that the folder is whole
        folder / "modules.json",
        [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (kind, path) in enumerate(kinds)
        ],
    )
    return folder


def described(model: SentenceEncoder) -> dict[str, Any]:
    """The transformer's config as JSON with the numbers that its modules really have. Raises ExportError where it has none."""
    config = json.loads(model.config.to_json_string(use_diff=True))
    config["model_type"] = model.config.model_type
    for path, module in model.named_modules():
        if getattr(module, "limbeck_quantized", False) or any(
            not p.is_floating_point() for p in module.parameters(recurse=False)
        ):
            raise ExportError(
                f"{path} is quantized; sentence-transformers reads float weights: export before quantizing"
            )
    if model.config.model_type == "bert":
        layers = list(model.transformer.encoder.layer)
        widths = {
            layer.intermediate.dense.out_features
            for layer in layers
            if hasattr(layer.intermediate.dense, "out_features")
        }
        if len(widths) != 1:
            raise ExportError(
                f"the feed-forward layers have the widths {sorted(widths)}; a BERT config has one for all"
            )
        config |= {"num_hidden_layers": len(layers), "intermediate_size": widths.pop()}
    from limbeck.models.pretrained import transformer

    with torch.device("meta"):
        wanted = transformer("AutoModel", dict(config)).state_dict()
    found = model.transformer.state_dict()
    pooler = {key for key in wanted if key.startswith("pooler.")}
    different = sorted(
        key
        for key in (set(wanted) | set(found)) - pooler
        if key not in wanted or key not in found or wanted[key].shape != found[key].shape
    )
    if different:
        raise ExportError(
            f"{different[0]} does not fit any {config['model_type']} config: sentence-transformers can hold dropped layers and "
            "feed-forward neurons pruned alike in all layers, not pruned heads, factorized or quantized layers"
        )
    return {**config, "architectures": [type(model.transformer).__name__]}


def _write_transformer(config: dict[str, Any], weights: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.safetensors"
        save_file(weights, str(file), metadata={"format": "pt"})
        write_bytes(folder / "model.safetensors", file.read_bytes())
    write_json(folder / "config.json", config)


def _write_dense(model: SentenceEncoder, folder: Path) -> None:
    from safetensors.torch import save_file

    activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(model.activation, kind))
    write_json(
        folder / "config.json",
        {
            "in_features": model.dense.in_features,
            "out_features": model.dense.out_features,
            "bias": model.dense.bias is not None,
            "activation_function": ACTIVATION_NAMES[activation],
        },
    )
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.safetensors"
        weights = {
            f"linear.{key}": value.detach().cpu().contiguous() for key, value in model.dense.state_dict().items()
        }
        save_file(weights, str(file), metadata={"format": "pt"})
        write_bytes(folder / "model.safetensors", file.read_bytes())
