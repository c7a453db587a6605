"""Experiments: what a published claim is, how its miniature runs, what the ledger keeps of it, and the statistics in between."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "Arm": "paper",
    "Comparison": "paper",
    "Miniature": "paper",
    "Paper": "paper",
    "Sequential": "paper",
    "Run": "run",
    "Store": "store",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"limbeck.experiments.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'limbeck.experiments' has no attribute {name!r}")
