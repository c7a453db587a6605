"""Limbeck makes neural networks small: distil, prune, factorize, quantize, measure, and write one artifact that runs elsewhere.

    import limbeck as lb

    task = lb.tasks.ImageClassification("digits")
    result = lb.compress(teacher, task, steps=[lb.Distill(lb.objectives.SoftTargets(temperature=4), lb.TrainingConfig(epochs=10))],
                         student=lb.models.resnet(8, channels=1), budget=lb.Budget(drop="1%"))
    result.save("small/")
    model = lb.load("small/")

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "compress": "limbeck.pipeline",
    "run_recipe": "limbeck.pipeline",
    "compare": "limbeck.comparison",
    "Result": "limbeck.pipeline",
    "Recipe": "limbeck.recipe",
    "Budget": "limbeck.budget",
    "Distill": "limbeck.steps",
    "Train": "limbeck.steps",
    "QuantizationAware": "limbeck.steps",
    "TrainingConfig": "limbeck.training",
    "Trainer": "limbeck.training",
    "Prune": "limbeck.pruning",
    "PruneLayers": "limbeck.pruning",
    "TrimVocabulary": "limbeck.pruning",
    "Sparsify": "limbeck.pruning",
    "LowRank": "limbeck.factorization",
    "AlignClassifier": "limbeck.conversion",
    "GrowClassifier": "limbeck.conversion",
    "FoldBatchNorm": "limbeck.quantization",
    "Quantize": "limbeck.quantization",
    "Quantized": "limbeck.quantized",
    "quantize": "limbeck.quantized",
    "apply": "limbeck.plan",
    "Plan": "limbeck.plan",
    "Factory": "limbeck.build",
    "load": "limbeck.artifact",
    "save": "limbeck.artifact",
    "LimbeckError": "limbeck.errors",
}
_ROOMS = (
    "tasks",
    "models",
    "objectives",
    "teachers",
    "training",
    "pruning",
    "factorization",
    "conversion",
    "quantization",
    "codecs",
    "search",
    "inference",
    "measure",
    "export",
    "report",
    "datasets",
    "graphs",
    "retrieval",
    "diffusion",
    "beds",
    "experiments",
    "graphs",
    "search",
)
__all__ = [*sorted(_NAMES), *_ROOMS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"limbeck.{name}")
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
