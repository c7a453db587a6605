"""Data: loading, splitting, tokenizing (by module), and synthesizing: a few images that stand for many."""

from typing import Any

_NAMES = (
    "CharacteristicMatching",
    "DistributionCondensation",
    "FrequencySampler",
    "MeanMatching",
    "SyntheticSet",
    "characteristic_discrepancy",
    "select_per_class",
)
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from limbeck.datasets import synthesize

        return getattr(synthesize, name)
    raise AttributeError(f"module 'limbeck.datasets' has no attribute {name!r}")
