"""Data: loading, splitting, tokenizing (by module), selecting, and synthesizing: a few images that stand for many, or inputs
that stand for data one may not see."""

import importlib
from typing import Any

_NAMES = {
    "BatchNormMatching": "batch_norm_images",
    "CharacteristicMatching": "synthesize",
    "ClassGaussians": "pseudo",
    "DistributionCondensation": "synthesize",
    "FrequencySampler": "synthesize",
    "GeneratedSet": "generated_images",
    "MeanMatching": "synthesize",
    "SyntheticSet": "synthesize",
    "characteristic_discrepancy": "synthesize",
    "highest_per_class": "select",
    "perturbed": "pseudo",
    "select_per_class": "synthesize",
    "noise_images": "batch_norm_images",
    "without_copies": "select",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"limbeck.datasets.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'limbeck.datasets' has no attribute {name!r}")
