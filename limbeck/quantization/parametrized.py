"""Weights that are computed from a trained tensor while they are trained, and plain tensors again when that is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from limbeck.errors import UsageError

WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def on_weights(model: nn.Module, make: Callable[[Tensor], nn.Module]) -> nn.Module:
    """Put make(weight) before the weight of every linear and convolution layer, in place; returns the model.

    Raises UsageError for a model without such layers, or whose weights are parametrized already.
    """
    layers = [module for module in model.modules() if isinstance(module, WEIGHTS)]
    if not layers or any(parametrize.is_parametrized(layer) for layer in layers):
        raise UsageError("the model has no linear or convolution layer, or its weights are parametrized already")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", make(layer.weight))
    return model


def parametrized_weights(model: nn.Module, kind: type[nn.Module]) -> list[tuple[str, Any, nn.Parameter]]:
    """(path of the layer, its parametrization, the trained tensor) of every weight that one of this kind makes."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, WEIGHTS) and parametrize.is_parametrized(module, "weight"):
            chain = module.parametrizations.weight
            if isinstance(chain[0], kind):
                found.append((path, chain[0], chain.original))
    return found


def finish_weights(
    model: nn.Module, kind: type[nn.Module], store: Callable[[Any, Tensor], tuple[Any, Tensor]], prepared_by: str
) -> dict[str, Any]:
    """Undo `on_weights`, in place: store(parametrization, trained tensor) gives what is kept and the weight that the layer ends with.

    Returns what is kept by the path of the weight. Raises UsageError, naming who prepares a model, where nothing is parametrized so.
    """
    out = {}
    for path, found, trained in parametrized_weights(model, kind):
        module = model.get_submodule(path)
        out[f"{path}.weight"], weight = store(found, trained)
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        with torch.no_grad():
            module.weight.copy_(weight)
        module.weight.requires_grad_(trained.requires_grad)
    if not out:
        raise UsageError(f"the model has no weight to store: call {prepared_by} first")
    return out
