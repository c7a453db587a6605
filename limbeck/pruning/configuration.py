"""Configurations: the fields of a transformers model's `config` that state how many layers it has.

Only depth is followed while a model lives, because forward passes read it (`layers[: config.num_hidden_layers]`). Widths and head
counts are read from the modules; an export that needs them in the configuration works them out from the shapes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "encoder_layers", "decoder_layers", "depth")


def configurations(model: nn.Module) -> list[tuple[str, Any]]:
    """(path of the outermost owner, configuration) for every configuration object in a model."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "__dict__") and hasattr(config, "to_dict"):
            found.setdefault(id(config), (path, config))
    return list(found.values())


def set_configuration(model: nn.Module, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set {owner path: {field: value}} on copies: another model may have been built from the same configuration object."""
    if not changes:
        return
    copies: dict[int, Any] = {}  # shared by all copies, so that a configuration inside another one stays one object
    fresh = {id(config): copy.deepcopy(config, copies) for _, config in configurations(model)}
    for module in model.modules():
        if id(vars(module).get("config")) in fresh:
            module.config = fresh[id(module.config)]
    for path, values in changes.items():
        for name, value in values.items():
            setattr(model.get_submodule(path).config, name, value)


def depth_changes(
    model: nn.Module, lengths: Mapping[str, int], kept: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """Fields that count the layers of a model's only stack, and lists with one entry per layer."""
    if len(lengths) != 1:
        return {}
    ((path, length),) = lengths.items()
    if len(kept[path]) == length:
        return {}
    changes: dict[str, dict[str, Any]] = {}
    for owner, config in configurations(model):
        values = {name: len(kept[path]) for name in LAYER_COUNTS if getattr(config, name, None) == length}
        for name, value in vars(config).items():
            if isinstance(value, list) and len(value) == length and "layer" in name:
                values[name] = [value[i] for i in kept[path]]
        if values and (not owner or path.startswith(owner + ".")):
            changes[owner] = values
    return changes
