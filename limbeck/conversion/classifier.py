"""The classifier of a model that keeps learning classes: rows for new ones, and rows of equal size for all.

GrowClassifier(classes):  (old, D) -> (classes, D), the old rows as they were, the new ones drawn
AlignClassifier(old):     w_i <- gamma w_i for the new rows i >= old,   gamma = mean |w_old| / mean |w_new|
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan

GROW, ALIGN = "grow_classifier", "align_classifier"


def alignment(weight: Tensor, old: int, norm: float = 2, largest: float = math.inf) -> float:
    """gamma = mean_{i < old} |w_i| / mean_{i >= old} |w_i| of weight (C, D), at most `largest`; 1 where either side is zero."""
    norms = torch.linalg.vector_norm(weight.detach().double(), ord=norm, dim=1)
    before, after = float(norms[:old].mean()), float(norms[old:].mean())
    return min(before / after, largest) if before > 0 and after > 0 else 1.0


@dataclass(frozen=True)
class AlignClassifier:
    """Weight aligning: scale the classifier's rows of the new classes to the average norm of the old ones.

    A classifier trained on many new and few old examples has longer rows for the new classes and answers them too often.
    Scaling a row scales its logit, so the order among old classes and among new ones stays; no data are needed.

    old: how many classes came before, rows 0..old-1. norm: of a row, 1 or 2. largest: bound of the factor; infinity for none.
    path: the linear layer; by default the last of the model. A bias is scaled with its row.
    Raises UsageError where old leaves one side empty or the model has no such layer.
    Source: Zhao et al., "Maintaining Discrimination and Fairness in Class Incremental Learning", CVPR 2020, eq. 6 to 9.
    The authors' code has norm=1 and largest=1; the formula has the 2-norm and no bound.
    """

    old: int
    norm: float = 2
    largest: float = math.inf
    path: str | None = None

    def __post_init__(self) -> None:
        _whole("AlignClassifier", "old", self.old)
        if self.norm not in (1, 2):
            raise UsageError(f"AlignClassifier: norm={self.norm!r} must be 1 or 2")
        if isinstance(self.largest, bool) or not isinstance(self.largest, (int, float)) or not self.largest > 0:
            raise UsageError(f"AlignClassifier: largest={self.largest!r} must be above 0")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Read the rows; the model stays as it is."""
        path, layer = _classifier(model, self.path)
        if self.old >= layer.out_features:
            raise UsageError(
                f"AlignClassifier: old={self.old} leaves no new class; {path!r} has {layer.out_features}: give fewer"
            )
        gamma = alignment(layer.weight, self.old, self.norm, self.largest)
        return Plan(ALIGN, {"path": path, "data": {"old": self.old, "gamma": gamma}})


@dataclass(frozen=True)
class GrowClassifier:
    """Give the classifier rows for more classes: the first ones stay, the new ones are drawn as nn.Linear draws its own
    (uniform within 1 / sqrt(D), from `seed`); new biases are 0.

    classes: how many there are afterwards. path: the linear layer; by default the last of the model. Raises UsageError for
    fewer classes than there are.
    """

    classes: int
    seed: int = 0
    path: str | None = None

    def __post_init__(self) -> None:
        _whole("GrowClassifier", "classes", self.classes)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find the layer; the model stays as it is."""
        path, layer = _classifier(model, self.path)
        if self.classes < layer.out_features:
            raise UsageError(
                f"GrowClassifier: classes={self.classes} is fewer than the {layer.out_features} of {path!r}: give more"
            )
        return Plan(GROW, {"path": path, "classes": self.classes, "seed": self.seed})


def apply_alignment(model: nn.Module, plan: Plan) -> nn.Module:
    """Scale the new rows. Without its data (an artifact's lineage) the weights carry the factor already."""
    layer, data = _planned(model, plan), plan.decisions.get("data")
    if data is not None:
        with torch.no_grad():
            for values in (layer.weight, layer.bias):
                if values is not None:
                    values[data["old"] :] *= data["gamma"]
    return model


def apply_growth(model: nn.Module, plan: Plan) -> nn.Module:
    """Put a larger linear layer in the place of the classifier."""
    layer, classes = _planned(model, plan), plan.decisions["classes"]
    if classes < layer.out_features:
        raise ArtifactError(
            f"the plan grows {plan.decisions['path']!r} to {classes} classes; it has {layer.out_features}"
        )
    old, width = layer.weight.shape
    draws = torch.Generator().manual_seed(plan.decisions["seed"])
    fresh = (2 * torch.rand(classes - old, width, generator=draws) - 1) / math.sqrt(width)
    grown = nn.utils.skip_init(nn.Linear, width, classes, bias=layer.bias is not None, device=layer.weight.device)
    grown = grown.to(layer.weight.dtype).train(layer.training)
    with torch.no_grad():
        grown.weight.copy_(torch.cat([layer.weight, fresh.to(layer.weight)]))
        if layer.bias is not None:
            grown.bias.copy_(torch.cat([layer.bias, layer.bias.new_zeros(classes - old)]))
    for name, parameter in grown.named_parameters():
        parameter.requires_grad_(getattr(layer, name).requires_grad)
    parent, _, name = plan.decisions["path"].rpartition(".")
    setattr(model.get_submodule(parent), name, grown)
    return model


def _classifier(model: nn.Module, path: str | None) -> tuple[str, nn.Linear]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name}
    if path is None and layers:
        path = list(layers)[-1]
    if path not in layers:
        shown = ", ".join(list(layers)[-3:]) or "none"
        raise UsageError(f"{type(model).__name__} has no linear layer {path!r}; its last ones are: {shown}")
    return path, layers[path]


def _planned(model: nn.Module, plan: Plan) -> nn.Linear:
    try:
        layer = model.get_submodule(plan.decisions["path"])
    except (AttributeError, KeyError) as error:
        raise ArtifactError(f"the plan {plan.kind!r} names a classifier this model does not have: {error}") from error
    if not isinstance(layer, nn.Linear):
        raise ArtifactError(f"the plan {plan.kind!r} names {plan.decisions['path']!r}, a {type(layer).__name__}")
    return layer


def _whole(owner: str, field: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{owner}: {field}={value!r} must be a whole number of at least 1")
