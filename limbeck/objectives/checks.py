"""Refusals that several objectives share."""

from __future__ import annotations

import math

from torch import Tensor

from limbeck.errors import UsageError, did_you_mean
from limbeck.objectives.base import Objective


def require_positive(owner: Objective, name: str, value: float) -> None:
    """Refuse a setting that must be a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{owner.name}: {name}={value!r} must be a positive finite number")


def require_choice(owner: Objective, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a setting that is none of the allowed words."""
    if value not in allowed:
        raise UsageError(f"{owner.name}: {name}={value!r} is unknown. {did_you_mean(value, allowed)}")


def require_classes(objective: Objective, logits: Tensor) -> None:
    """Refuse outputs without at least two classes in the last axis."""
    if logits.dim() < 2 or logits.shape[-1] < 2:
        raise UsageError(
            f"{objective.name}: logits of shape {tuple(logits.shape)}; they must be (batch, classes) or (batch, length, "
            "classes) with at least two classes"
        )


def require_signal(objective: Objective, name: str, value: str) -> None:
    """Refuse a signal name that is empty or could name several modules."""
    if not isinstance(value, str) or not value or "*" in value:
        raise UsageError(
            f"{objective.name}: {name}={value!r} must name one signal: 'logits', a module path such as 'layer2', or "
            "'PATH:input'. For several pairs, add several objectives."
        )
