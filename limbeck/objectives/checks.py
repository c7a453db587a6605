"""Refusals that several objectives share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from limbeck.errors import UsageError, did_you_mean
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.positions import IGNORED


def require_positive(owner: Objective, name: str, value: float) -> None:
    """Refuse a setting that must be a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{owner.name}: {name}={value!r} must be a positive finite number")


def require_whole(owner: Objective, name: str, value: int, least: int = 1) -> None:
    """Refuse a setting that must be a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{owner.name}: {name}={value!r} must be a whole number of at least {least}")


def require_choice(owner: Objective, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the allowed words."""
    if value not in allowed:
        raise UsageError(f"{owner.name}: {name}={value!r} is unknown. {did_you_mean(value, allowed)}")


def require_classes(objective: Objective, logits: Tensor, least: int = 2) -> None:
    """Refuse outputs without at least `least` classes in the last axis."""
    if logits.dim() < 2 or logits.shape[-1] < least:
        raise UsageError(
            f"{objective.name}: logits of shape {tuple(logits.shape)}; they must be (batch, classes) or (batch, length, "
            f"classes) with at least {('one class', 'two classes', 'three classes')[least - 1]}"
        )


def require_labels(objective: Objective, batch: Batch, logits: Tensor, ignore_index: int = IGNORED) -> Tensor:
    """The labels of logits (..., C), checked: whole numbers (...), 0 where a position is ignored, or probabilities (..., C).

    Raises UsageError for labels that are missing, would broadcast or are no class of the student.
    """
    labels = batch.get("labels")
    if labels is None:
        raise UsageError(f"{objective.name} needs batch['labels']; the batch has {sorted(batch)}")
    soft = labels.is_floating_point()
    if labels.shape != (logits.shape if soft else logits.shape[:-1]):
        raise UsageError(
            f"{objective.name}: labels of shape {tuple(labels.shape)} ({labels.dtype}) do not fit logits of shape "
            f"{tuple(logits.shape)}: they must be class indices {tuple(logits.shape[:-1])} or probabilities "
            f"{tuple(logits.shape)}"
        )
    if soft:
        return labels
    labels, classes = labels.long().masked_fill(labels == ignore_index, 0), logits.shape[-1]
    if labels.device.type == "cpu" and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise UsageError(
            f"{objective.name}: label {wrong} is no class of a student with {classes} classes (0 to {classes - 1}, or "
            f"{ignore_index} to ignore a position)"
        )
    return labels


def true_classes(objective: Objective, batch: Batch, logits: Tensor) -> Tensor:
    """The true class of each position (...): of labels that are probabilities, as mixup makes them, the likeliest one."""
    labels = require_labels(objective, batch, logits)
    return labels.argmax(dim=-1) if labels.is_floating_point() else labels


def require_signal(objective: Objective, name: str, value: str) -> None:
    """Refuse a signal name that is empty or could name several modules."""
    if not isinstance(value, str) or not value or "*" in value:
        raise UsageError(
            f"{objective.name}: {name}={value!r} must name one signal: 'logits', a module path such as 'layer2', or "
            "'PATH:input'. For several pairs, add several objectives."
        )


def require_connectors(objective: Objective, connectors: Connectors, *names: str) -> None:
    """Refuse a call without the modules that the objective made."""
    if set(connectors) != set(names):
        raise UsageError(
            f"{objective.name} needs {', '.join(names)}: hand over what objective.connectors(student, teacher) made"
        )


def signal_layers(objective: Objective, name: str, value: Sequence[str], least: int = 1) -> tuple[str, ...]:
    """The signals of several layers, as a tuple; refuses fewer than `least`."""
    layers = (value,) if isinstance(value, str) else tuple(value)
    if len(layers) < least:
        raise UsageError(f"{objective.name}: {name}={value!r} must name at least {least} layers")
    for layer in layers:
        require_signal(objective, name, layer)
    return layers


def example_index(name: str, batch: Batch, size: int) -> Tensor:
    """batch["index"], the positions of its examples in the train split. name: of who asks; size: for how many examples it was made."""
    index = batch.get("index")
    if index is None:
        raise UsageError(f"{name} needs batch['index'], the example's position; the batch has {sorted(batch)}")
    if len(index) and int(index.max()) >= size:
        raise UsageError(
            f"{name} was made for {size} examples, and a batch has example {int(index.max())}: make it with "
            "examples=task.size('train')"
        )
    return index
