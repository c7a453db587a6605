"""Export to the transformers layout: config.json, model.safetensors, tokenizer files, readable by any Auto class.

A pruned model fits only when its config can say what was removed. Which settings those are is found by comparison: the
architecture of the old config is built without weights, and every axis whose size changed from `o` to `n` suggests the
settings whose value is `o` (or, for attention heads, `o / head_dim`). A setting is kept when the architecture of the new config
has exactly the names and shapes of the model; the reloaded outputs are then compared with the model's.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.build import lineage
from limbeck.errors import ExportError, LimbeckError, UsageError, require
from limbeck.export.runtime import first_line
from limbeck.folders import replacing_folder
from limbeck.signals import call, first_tensor
from limbeck.weights import empty_model, weights_digest

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
)
LAYERS = "num_hidden_layers"
HEADS = ("num_attention_heads", "num_key_value_heads")
MOST_TRIALS = 64

Shapes = dict[str, tuple[int, ...]]


def export_transformers(model: nn.Module, task_or_example: Any, folder: Path | str, *, tokenizer: Any = None) -> float:
    """Write a transformers model as a transformers folder, reload it, and return the largest difference of its outputs.

    task_or_example  a Task or a batch of example inputs for the comparison; None: the model's own `dummy_inputs`
    tokenizer        a folder to copy the tokenizer's (or image processor's) files from, or an object with `save_pretrained`;
                     None: the task's own, where it has one

    Raises UsageError when the model is no transformers PreTrainedModel or `folder` is there and not empty; ExportError when the
    config cannot express the model, naming the plan that is in the way, or when the reloaded model differs.
    """
    transformers = require("transformers", "transformers")
    folder = Path(folder)
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(f"{type(model).__name__} is not a transformers PreTrainedModel; export it to ONNX instead")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; choose another")
    config = fitting_config(model)
    if config is None:
        raise ExportError(in_the_way(model))
    inputs = example_of(model, task_or_example)
    with replacing_folder(folder) as at:
        before, training = model.config, model.training
        try:
            model.config = config
            model.eval().save_pretrained(at)
        finally:
            model.config = before
            model.train(training)
        write_tokenizer(getattr(task_or_example, "tokenizer", None) if tokenizer is None else tokenizer, at)
        return _compare(model, at, inputs)


def fitting_config(model: nn.Module, wanted: Shapes | None = None) -> Any | None:
    """A config whose architecture has exactly the model's names and shapes (or the `wanted` ones), or None when no setting says so."""
    wanted = shapes_of(model) if wanted is None else wanted
    for config in _candidates(model, wanted):
        if _architecture(model, config) == wanted:
            return config
    return None


def shapes_of(model: nn.Module) -> Shapes:
    """Names and shapes of everything in the model's state."""
    return {name: tuple(t.shape) for name, t in model.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def _architecture(model: nn.Module, config: Any) -> Shapes | None:
    try:
        with torch.device("meta"):
            return shapes_of(type(model)(copy.deepcopy(config)))
    except Exception:  # settings that the architecture refuses, such as a width its heads do not divide
        return None


def _candidates(model: nn.Module, wanted: Shapes) -> Iterator[Any]:
    """The model's config, then copies of it with fewer layers and changed sizes, at most MOST_TRIALS."""
    config = copy.deepcopy(model.config)
    yield config
    layers = _layer_count(model)
    if layers is not None and getattr(config, LAYERS, layers) != layers:
        config = _with_layers(config, layers, _kept_layers(model))
        yield config
    old = _architecture(model, config)
    if old is None or set(old) != set(wanted):
        return
    changes: dict[int, set[int]] = {}
    for name, shape in old.items():
        for before, after in zip(shape, wanted[name]):
            if before != after:
                changes.setdefault(before, set()).add(after)
    settings: dict[str, int] = {}
    width = _head_width(config)
    for name, value in config.to_dict().items():
        if type(value) is not int:
            continue
        if len(changes.get(value, ())) == 1:
            settings[name] = next(iter(changes[value]))
        sizes = changes.get(value * width, set()) if width and name in HEADS else set()
        if len(sizes) == 1 and next(iter(sizes)) % width == 0:
            settings[name] = next(iter(sizes)) // width
    subsets = (
        names for count in range(1, len(settings) + 1) for names in itertools.combinations(sorted(settings), count)
    )
    for names in itertools.islice(subsets, MOST_TRIALS):
        changed = copy.deepcopy(config)
        if width and hasattr(changed, "head_dim"):
            changed.head_dim = width
        for name in names:
            setattr(changed, name, settings[name])
        yield changed


def _head_width(config: Any) -> int | None:
    width, heads = getattr(config, "hidden_size", None), getattr(config, HEADS[0], None)
    given = getattr(config, "head_dim", None)
    if isinstance(given, int):
        return given
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None


def _layer_count(model: nn.Module) -> int | None:
    """Length of the longest list of modules of one class: the stack of layers."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len({type(one) for one in m}) == 1]
    return max(map(len, lists), default=None)


def _kept_layers(model: nn.Module) -> list[int] | None:
    """Which of the config's layers are left, as the model's `prune_layers` plans say; None without such a plan."""
    kept: list[int] | None = None
    past = lineage(model)
    for plan in past.plans if past else ():
        if plan.kind == "prune_layers":
            found = list(_lists(plan.decisions))
            if len(found) == 1:
                kept = found[0] if kept is None else [kept[i] for i in found[0]]
    return kept


def _lists(value: Any) -> Iterator[list[int]]:
    if isinstance(value, list) and all(type(one) is int for one in value):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _lists(one)


def _with_layers(config: Any, count: int, kept: list[int] | None) -> Any:
    """The config with `count` layers; settings with one entry per layer keep the entries of the layers that are left."""
    before = getattr(config, LAYERS)
    kept = kept if kept is not None and len(kept) == count and max(kept) < before else list(range(count))
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == before and name != "architectures":
            setattr(config, name, [value[i] for i in kept])
    setattr(config, LAYERS, count)
    return config


def in_the_way(model: nn.Module) -> str:
    """The reason why no config fits: the first plan after which none does, or the tensors that differ."""
    past, text = lineage(model), f"the config of {type(model).__name__} cannot express this model"
    package = past.factory.target.partition(":")[0] if past else ""
    for count in range(1, len(past.plans) + 1 if past else 1):
        try:
            found = fitting_config(empty_model(type(past)(past.factory, past.plans[:count]), trust=(package,)))
        except LimbeckError:
            break
        if found is None:
            kind = past.plans[count - 1].kind
            return f"{text}: plan {count} of {len(past.plans)}, {kind!r}, is in the way. Save an artifact or export to ONNX."
    expected = _architecture(model, model.config) or {}
    wanted = shapes_of(model)
    names = sorted(name for name in {*expected, *wanted} if expected.get(name) != wanted.get(name))[:3]
    return f"{text}: {', '.join(names)} differ from what any of its settings makes. Save an artifact or export to ONNX."


def example_of(model: nn.Module, task_or_example: Any) -> dict[str, Tensor]:
    """A batch for a comparison: the task's, the one that is given, or the model's own `dummy_inputs`."""
    if task_or_example is None:
        return _dummy_inputs(model)
    return dict(task_or_example.example(2) if hasattr(task_or_example, "batches") else task_or_example)


def _dummy_inputs(model: nn.Module) -> dict[str, Tensor]:
    inputs = {name: value for name, value in model.dummy_inputs.items() if isinstance(value, Tensor)}
    if not inputs or model.main_input_name not in inputs:
        raise UsageError(f"give example inputs: {type(model).__name__} reads {model.main_input_name!r} and brings none")
    return inputs


def write_tokenizer(tokenizer: Any, at: Path) -> None:
    if tokenizer is None:
        return
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(at)
        return
    source = Path(tokenizer)
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        raise UsageError(f"{source} holds no tokenizer files such as {', '.join(TOKENIZER_FILES[:3])}")
    for name in names:
        shutil.copyfile(source / name, at / name)


def _compare(model: nn.Module, at: Path, inputs: Mapping[str, Tensor]) -> float:
    try:
        again = (
            type(model)
            .from_pretrained(
                at, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=model.dtype
            )
            .eval()
        )
    except Exception as error:
        raise ExportError(f"transformers cannot reload what was written: {first_line(error)}") from error
    if weights_digest(again) != weights_digest(model):
        raise ExportError("transformers reloads other weights than were written; nothing was kept")
    training = model.training
    try:
        with torch.no_grad():
            expected, found = (
                first_tensor(call(model.eval(), inputs)),
                first_tensor(call(again.to(model.device), inputs)),
            )
    finally:
        model.train(training)
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-5, atol=1e-6):
        raise ExportError(f"{type(model).__name__} gives other outputs when transformers reloads it; nothing was kept")
    return float((expected - found).abs().max())
