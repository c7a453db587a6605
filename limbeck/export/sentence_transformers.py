"""Write a sentence encoder as a folder that `SentenceTransformer(folder)` loads.

    folder/  modules.json   config.json, model.safetensors   1_Pooling/   [2_Dense/]   tokenizer files   sentence_bert_config.json

A float model comes back with the same embeddings. Of a quantized one the float weights are written that its codes stand for:
sentence-transformers computes with them in float, so embeddings differ by the rounding of activations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.datasets.tokenize import load_tokenizer
from limbeck.errors import ExportError, UsageError
from limbeck.export.float_form import float_weights
from limbeck.files import write_json
from limbeck.folders import replacing_folder
from limbeck.models.pretrained import transformer
from limbeck.models.sentence_encoder import ACTIVATIONS, SentenceEncoder, load_sentence_encoder, resolve_folder

ACTIVATION_NAMES = {"tanh": "torch.nn.modules.activation.Tanh", "identity": "torch.nn.modules.linear.Identity"}
LENGTH = 256
TOLERANCE = {False: 1e-5, True: 0.1}  # quantized or not -> largest difference of an entry of a normalized embedding


def export_sentence_transformers(
    model: nn.Module,
    task_or_example: Any,
    folder: Path | str,
    *,
    tokenizer: Any = None,
    length: int | None = None,
    lower_case: bool = False,
) -> float:
    """Write the folder, read it again, and return the largest difference of its embeddings.

    task_or_example  a Task, whose tokenizer and length are taken, or a batch of example inputs for the comparison
    tokenizer        a transformers tokenizer, or the folder or hub name that holds one; None: the task's
    length           tokens per text at most; None: the task's, or 256
    lower_case       lower-case texts before the tokenizer, for tokenizers that leave it to the model

    Layers that were dropped and feed-forward neurons that were pruned alike in all layers become the config's numbers. Raises
    UsageError for a model that is no sentence encoder, without a tokenizer, or when `folder` is there and not empty; ExportError
    for a shape that no config of the transformer describes (heads pruned, layers factorized) or when embeddings differ.
    """
    if not isinstance(model, SentenceEncoder):
        raise UsageError(
            f"only a sentence encoder is written in the sentence-transformers layout, not {type(model).__name__}: "
            "see limbeck.models.load_sentence_encoder"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another")
    task = task_or_example if hasattr(task_or_example, "batches") else None
    tokenizer = getattr(task, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise UsageError("a sentence-transformers folder needs a tokenizer: pass tokenizer=, a folder or a tokenizer")
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(str(resolve_folder(tokenizer)))
    weights, quantized = float_weights(model)
    config = described(model, weights)
    length = length or getattr(task, "length", None) or LENGTH
    with replacing_folder(folder) as at:
        _save({k.removeprefix("transformer."): v for k, v in weights.items() if k.startswith("transformer.")}, at)
        write_json(at / "config.json", config)
        kinds = _pooling_and_more(model, weights, at)
        tokenizer.save_pretrained(at)
        write_json(at / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": lower_case})
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(kinds)
        ]
        write_json(at / "modules.json", modules)
        return _compare(model, at, task.example(2) if task is not None else task_or_example, TOLERANCE[quantized])


def described(model: SentenceEncoder, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The transformer's config as JSON with the numbers that its modules really have. Raises ExportError where it has none."""
    config = {**json.loads(model.config.to_json_string(use_diff=True)), "model_type": model.config.model_type}
    found = {k.removeprefix("transformer."): v.shape for k, v in weights.items() if k.startswith("transformer.")}
    if model.config.model_type == "bert":
        layers = {int(key.split(".")[2]) for key in found if key.startswith("encoder.layer.")}
        widths = {shape[0] for key, shape in found.items() if key.endswith("intermediate.dense.weight")}
        if len(widths) > 1:
            raise ExportError(
                f"the feed-forward layers have the widths {sorted(widths)}; a BERT config has one for all"
            )
        config |= {"num_hidden_layers": len(layers)} | ({"intermediate_size": widths.pop()} if widths else {})
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in transformer("AutoModel", dict(config)).state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if key in found or not key.startswith("pooler.")}
    different = sorted(key for key in set(wanted) | set(found) if wanted.get(key) != found.get(key))
    if different:
        raise ExportError(
            f"{different[0]} does not fit any {config['model_type']} config: sentence-transformers can hold dropped layers and "
            "feed-forward neurons pruned alike in all layers, not pruned heads or factorized layers"
        )
    return {**config, "architectures": [type(model.transformer).__name__]}


def _pooling_and_more(model: SentenceEncoder, weights: Mapping[str, Tensor], at: Path) -> list[tuple[str, str]]:
    """Write pooling and dense; return the kinds of all modules and where they are."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modes = {f"pooling_mode_{m}": m.startswith(model.pooling) for m in ("cls_token", "mean_tokens", "max_tokens")}
    width = model.config.hidden_size
    pooling = {"word_embedding_dimension": width, **modes, "pooling_mode_mean_sqrt_len_tokens": False}
    write_json(at / "1_Pooling" / "config.json", pooling)
    if model.dense is not None:
        kinds.append(("Dense", "2_Dense"))
        activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(model.activation, kind))
        settings = {"in_features": width, "out_features": model.width, "bias": "dense.bias" in weights}
        write_json(at / "2_Dense" / "config.json", {**settings, "activation_function": ACTIVATION_NAMES[activation]})
        _save({k.replace("dense.", "linear."): v for k, v in weights.items() if k.startswith("dense.")}, at / "2_Dense")
    if model.normalize:
        kinds.append(("Normalize", f"{len(kinds)}_Normalize"))
        (at / kinds[-1][1]).mkdir()
    return kinds


def _save(weights: dict[str, Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _compare(model: SentenceEncoder, at: Path, inputs: Mapping[str, Tensor], tolerance: float) -> float:
    again = load_sentence_encoder(at)
    ids, mask, training = inputs["input_ids"], inputs["attention_mask"], model.training
    try:
        with torch.no_grad():
            expected, found = model.eval()(ids, mask).cpu(), again(ids.cpu(), mask.cpu())
    finally:
        model.train(training)
    difference = float((expected - found).abs().max() / expected.norm(dim=-1).max().clamp_min(1e-12))
    if not difference <= tolerance:
        raise ExportError(f"the written model gives other embeddings, by {difference:.3g}; {tolerance:g} is allowed")
    return difference
