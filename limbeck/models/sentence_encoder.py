"""Sentence encoders: a transformer, pooling to one vector, a projection where the width differs, and L2 normalization.

    ids, mask -> transformer -> (B, L, H) -> pooling -> (B, H) -> [dense -> (B, D)] -> [normalize] -> embedding (B, D)

pooling "mean" averages the tokens that are not padding; "cls" takes the first. With "cls" nothing reads the other tokens of
the last layer, so for BERT that layer's queries, output projection and feed-forward network are computed for the first token alone: the
same numbers, and a last layer that costs about a sixth: keys and values.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import ArtifactError, UsageError, did_you_mean
from limbeck.models.pretrained import FORGOTTEN, load_pretrained, transformer

POOLINGS = ("mean", "cls")
STRENGTH = 8.0  # of the mean against the first token, where a layer starts as the mean of its inputs
ACTIVATIONS = {"tanh": nn.Tanh, "identity": nn.Identity}


class SentenceEncoder(nn.Module):
    """`forward(input_ids, attention_mask)` gives one embedding (B, D) per text. Positions where the mask is 0 are padding."""

    def __init__(self, inner: nn.Module, pooling: str, dense: dict[str, Any] | None, normalize: bool):
        super().__init__()
        if pooling not in POOLINGS:
            raise UsageError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling!r}")
        self.transformer, self.pooling, self.normalize = inner, pooling, bool(normalize)
        self.dense = None
        width = inner.config.hidden_size
        if dense is not None:
            if set(dense) - {"features", "bias", "activation"} or not isinstance(dense.get("features"), int):
                raise UsageError(
                    f"dense must hold features (a whole number), and may hold bias and activation, not {dense!r}"
                )
            activation = dense.get("activation", "identity")
            if activation not in ACTIVATIONS:
                raise UsageError(f"dense.activation: {did_you_mean(str(activation), ACTIVATIONS)}")
            self.dense = nn.Linear(width, dense["features"], bias=dense.get("bias", True))
            self.activation = ACTIVATIONS[activation]()
            width = dense["features"]
        self.width = width

    @property
    def config(self) -> Any:
        """The transformer's config."""
        return self.transformer.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            pooled = self._first(input_ids, attention_mask)
        else:
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            pooled = mean_pool(hidden, attention_mask)
        if self.dense is not None:
            pooled = self.activation(self.dense(pooled))
        return F.normalize(pooled.float(), dim=-1) if self.normalize else pooled

    def _first(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last layer's output at the first token. (B, H)"""
        if self.config.model_type != "bert":
            return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        hidden = self.transformer.embeddings(input_ids)
        layers = self.transformer.encoder.layer
        mask = torch.zeros_like(attention_mask, dtype=hidden.dtype)
        mask = mask.masked_fill(attention_mask == 0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in layers[:-1]:
            hidden = layer(hidden, attention_mask=mask)
        return first_token(layers[-1], hidden, mask)


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean over the tokens that are not padding: hidden (B, L, H), mask (B, L) -> (B, H)."""
    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1.0)


def first_token(layer: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor:
    """A BERT layer's output at the first token only: hidden (B, L, H), additive mask (B, 1, 1, L) -> (B, H)."""
    own, first = layer.attention.self, hidden[:, :1]

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)

    scores = heads(own.query(first)) @ heads(own.key(hidden)).transpose(2, 3) * own.scaling + mask
    context = (torch.softmax(scores, -1) @ heads(own.value(hidden))).transpose(1, 2).flatten(2)
    attended = layer.attention.output(context, first)
    return layer.output(layer.intermediate(attended), attended)[:, 0]


def sentence_encoder(
    config: dict[str, Any], pooling: str = "mean", dense: dict[str, Any] | None = None, normalize: bool = True
) -> nn.Module:
    """A sentence encoder with random weights.

    config: a transformers config as JSON, with its model_type. dense: {features, bias, activation} of a projection after
    pooling. Raises UsageError for settings that do not fit.
    """
    inner = transformer("AutoModel", config)
    _without_pooler(inner)
    return _marked(SentenceEncoder(inner, pooling, dense, normalize), dense)


def _without_pooler(inner: nn.Module) -> None:
    if getattr(inner, "pooler", None) is not None:
        inner.pooler = None  # next-sentence head of BERT: no sentence encoder reads it


def _marked(model: SentenceEncoder, dense: dict[str, Any] | None) -> nn.Module:
    settings = json.loads(model.config.to_json_string(use_diff=False))
    arguments = {
        "config": {key: value for key, value in settings.items() if key not in FORGOTTEN},
        "pooling": model.pooling,
        "dense": dense,
        "normalize": model.normalize,
    }
    return with_lineage(model, Factory("limbeck.models.sentence_encoder:sentence_encoder", arguments))


def resolve_folder(folder: Path | str) -> Path | str:
    """A folder or name as it is; "package:NAME/SUB" is the folder SUB inside the installed Python package NAME."""
    text = str(folder)
    if not text.startswith("package:"):
        return folder
    name, _, inside = text.removeprefix("package:").partition("/")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise ArtifactError(f"{text!r}: the Python package {name!r} is not installed. Install it, or give a folder")
    return Path(next(iter(found.submodule_search_locations))) / inside


def load_sentence_encoder(folder: Path | str) -> nn.Module:
    """The model of a sentence-transformers folder: Transformer, Pooling (mean or cls), Dense and Normalize modules.

    A plain transformers folder counts as mean pooling and normalization. Also "package:NAME/SUB". Raises ArtifactError for a
    missing or damaged file, UsageError for modules that this encoder does not have.
    """
    place = Path(resolve_folder(folder)).expanduser()
    listed = [("Transformer", ""), ("Pooling", None), ("Normalize", None)]
    if (place / "modules.json").is_file():
        listed = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in _json(place / "modules.json")]
    kinds = [kind for kind, _ in listed]
    allowed = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Dense"])
    if (
        [kind for kind in kinds if kind != "Normalize"] not in allowed
        or kinds.count("Normalize") > 1
        or ("Normalize" in kinds and kinds[-1] != "Normalize")
    ):
        raise UsageError(
            f"{place} holds the modules {kinds}; Limbeck reads Transformer, Pooling, then Dense and Normalize"
        )
    paths = dict(listed)
    inner = load_pretrained(str(place / paths["Transformer"]), "AutoModel")
    _without_pooler(inner)
    pooling = "mean" if paths["Pooling"] is None else _pooling(place / paths["Pooling"] / "config.json")
    dense, weights = (None, None) if "Dense" not in paths else _dense(place / paths["Dense"])
    model = SentenceEncoder(inner, pooling, dense, "Normalize" in kinds)
    if weights is not None:
        if weights["weight"].shape != model.dense.weight.shape:
            raise ArtifactError(
                f"{place / paths['Dense']}: the weights have the shape {tuple(weights['weight'].shape)}"
            )
        model.dense.load_state_dict(weights)
    return _marked(model, dense).eval()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}") from error


def _pooling(path: Path) -> str:
    found = _json(path)
    modes = {key.removeprefix("pooling_mode_").removesuffix("_tokens") for key in found if key.startswith("pooling_mode_")
             and found[key] is True}  # fmt: skip
    given = found.get("pooling_mode")
    modes |= {given} if isinstance(given, str) else set(given or ())
    modes = {"cls" if mode in ("cls", "cls_token") else mode for mode in modes}
    if len(modes) != 1 or not modes <= set(POOLINGS):
        raise UsageError(f"{path}: pooling {sorted(modes)} is not supported; it must be one of {', '.join(POOLINGS)}")
    return modes.pop()


def _dense(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors.torch import load_file

    found = _json(folder / "config.json")
    names = {"torch.nn.modules.activation.Tanh": "tanh", "torch.nn.modules.linear.Identity": "identity"}
    activation = names.get(found.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation is None:
        raise UsageError(f"{folder}: activation {found['activation_function']!r} is not supported, only {list(names)}")
    try:
        weights = load_file(str(folder / "model.safetensors"))
    except Exception as error:  # safetensors has its own error class, the file system others
        raise ArtifactError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    weights = {key.removeprefix("linear."): value.float() for key, value in weights.items()}
    dense = {"features": found["out_features"], "bias": bool(found.get("bias", True)), "activation": activation}
    return dense, weights


@torch.no_grad()
def student_encoder(
    folder: Path | str,
    layers: Sequence[int],
    pooling: str = "mean",
    hidden_act: str | None = None,
    heads: int | None = None,
    feed_forward: int | None = None,
    train_words: bool = False,
    word_states: int | None = None,
    word_texts: Sequence[str] | str | None = None,
    word_passages: int = 20000,
) -> nn.Module:
    """A shallower BERT sentence encoder that starts from some layers of a trained one: its place to begin distillation.

    layers: which layers of the encoder in `folder`, in order (one may come twice). hidden_act: another activation, "relu" being
    the cheapest in int8. heads: fewer, wider heads; queries are scaled by sqrt(old / new) so that a merged head scores with the sum of
    its parts. feed_forward: the neurons of largest |w_in| |w_out| that are kept. pooling "cls": the last layer starts out as the mean
    of its inputs, as the teacher's pooling is, whichever layer it is made from; training then weighs tokens and adds to
    the mean. train_words: whether word embeddings are trained too; frozen, rare words stay where the teacher has them, and steps
    are faster. word_states: a layer of the teacher; each word starts as the mean of its hidden states after that layer, so that
    `layers` can be the ones that follow it and the student starts out close to its teacher (see `limbeck.models.word_table`).
    The states are met in `word_passages` train passages of the collections `word_texts` (None: the `texts` of the task
    Retrieval). Raises UsageError for another kind of model or settings that do not fit.
    """
    teacher = load_sentence_encoder(folder)
    if teacher.config.model_type != "bert":
        raise UsageError(f"student_encoder cuts BERT encoders, and {folder} holds {teacher.config.model_type!r}")
    before = teacher.config
    layers = [layers] if isinstance(layers, int) else list(layers)
    if not layers or any(
        isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < before.num_hidden_layers for i in layers
    ):
        raise UsageError(f"layers must name layers 0 to {before.num_hidden_layers - 1}, not {layers}")
    heads, inner = heads or before.num_attention_heads, feed_forward or before.intermediate_size
    if before.num_attention_heads % heads or not 1 <= inner <= before.intermediate_size:
        raise UsageError(
            f"heads must divide {before.num_attention_heads} and feed_forward be at most {before.intermediate_size}, "
            f"not {heads} and {inner}"
        )
    config = {
        **json.loads(before.to_json_string(use_diff=False)),
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": hidden_act or before.hidden_act,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    dense = None
    if teacher.dense is not None:
        activation = next(name for name, kind in ACTIVATIONS.items() if isinstance(teacher.activation, kind))
        dense = {"features": teacher.width, "bias": teacher.dense.bias is not None, "activation": activation}
    model = sentence_encoder(config, pooling, dense, teacher.normalize)
    if dense:
        model.dense.load_state_dict(teacher.dense.state_dict())
    model.transformer.embeddings.load_state_dict(teacher.transformer.embeddings.state_dict())
    scale = math.sqrt(before.num_attention_heads / heads)
    for made, index in zip(model.transformer.encoder.layer, layers):
        source = teacher.transformer.encoder.layer[index]
        made.attention.load_state_dict(source.attention.state_dict())
        made.attention.self.query.weight *= scale
        made.attention.self.query.bias *= scale
        first, second = source.intermediate.dense, source.output.dense
        kept = (first.weight.norm(dim=1) * second.weight.norm(dim=0)).topk(inner).indices.sort().values
        made.intermediate.dense.weight.copy_(first.weight[kept])
        made.intermediate.dense.bias.copy_(first.bias[kept])
        made.output.dense.weight.copy_(second.weight[:, kept])
        made.output.dense.bias.copy_(second.bias)
        made.output.LayerNorm.load_state_dict(source.output.LayerNorm.state_dict())
    if word_states is not None:
        _start_from_states(model, teacher, folder, word_states, word_texts, word_passages)
    if pooling == "cls":
        _start_as_mean(model.transformer.encoder.layer[-1])
    model.transformer.embeddings.word_embeddings.weight.requires_grad_(train_words)
    return model


def _start_from_states(
    model: nn.Module, teacher: nn.Module, folder: Path | str, layer: int, texts: Sequence[str] | str | None, count: int
) -> None:
    from limbeck.datasets.passages import SOURCES
    from limbeck.models.word_table import install_table, table_of

    last = teacher.config.num_hidden_layers - 1
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer <= last:
        raise UsageError(f"word_states must be a layer from 0 to {last}, not {layer!r}")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UsageError(f"word_passages must be a whole number of at least 1, not {count!r}")
    texts = tuple(SOURCES) if texts is None else (texts,) if isinstance(texts, str) else tuple(texts)
    norm = teacher.transformer.encoder.layer[layer].output.LayerNorm
    install_table(model.transformer.embeddings, table_of(folder, layer, texts, count), norm)


def _start_as_mean(layer: nn.Module) -> None:
    """Make a layer's output at the first token (nearly) the normalized mean of its inputs, whatever they are.

    Queries near zero weigh all tokens alike, values and output are the identity, times STRENGTH so that the mean outweighs the
    first token's own state in the residual sum; the feed-forward network starts by adding nothing.
    """
    attention = layer.attention
    own, identity = attention.self, torch.eye(attention.output.dense.out_features)
    nn.init.normal_(own.query.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    own.value.weight.copy_(identity)
    attention.output.dense.weight.copy_(STRENGTH * identity)
    layer.output.dense.weight.zero_()
    for linear in (own.query, own.value, attention.output.dense, layer.output.dense):
        nn.init.zeros_(linear.bias)
    for norm in (attention.output.LayerNorm, layer.output.LayerNorm):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
