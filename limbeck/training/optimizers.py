"""Optimizers by name, and which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.training.config import TrainingConfig


def parameter_groups(
    modules: Iterable[nn.Module], weight_decay: float, decay_norms_and_biases: bool
) -> list[dict[str, object]]:
    """Trainable parameters, each once, in module order, in a group that decays and, where asked for, one that does not.

    Parameters with fewer than two axes are biases and the scales and shifts of normalizations.
    """
    seen: dict[int, nn.Parameter] = {}
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                seen.setdefault(id(parameter), parameter)
    parameters = list(seen.values())
    if decay_norms_and_biases or not weight_decay:
        return [{"params": parameters, "weight_decay": weight_decay}]
    decayed = [p for p in parameters if p.ndim >= 2]
    spared = [p for p in parameters if p.ndim < 2]
    groups = ((decayed, weight_decay), (spared, 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def make_optimizer(modules: Iterable[nn.Module], config: TrainingConfig, name: str = "main") -> torch.optim.Optimizer:
    """The optimizer that the config names, over the trainable parameters of the modules. UsageError when there are none."""
    groups = parameter_groups(modules, config.weight_decay, config.decay_norms_and_biases)
    if not any(group["params"] for group in groups):
        raise UsageError(f"optimizer {name!r} has nothing to train: no parameter of its modules requires a gradient")
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=config.learning_rate)
