"""How well places of an image are classified: the confusion matrix and what is read off it."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.objectives.positions import IGNORED


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often class i (row) was called class j (column): int64 (classes, classes). Labels of -100 do not count.

    Shapes: predictions, labels (...) of whole numbers. Matrices of several batches add up.
    """
    counted = labels != IGNORED
    pairs = labels[counted] * classes + predictions[counted]
    return torch.bincount(pairs.flatten(), minlength=classes * classes).reshape(classes, classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """Of each class, the places that are it and are called it, over those that are it or are called it: float64 (classes,).

    NaN for a class that neither occurs nor is ever said.
    """
    confusion = confusion.double()
    right = confusion.diagonal()
    return right / (confusion.sum(0) + confusion.sum(1) - right)


def segmentation_metrics(confusion: Tensor) -> dict[str, float]:
    """`mean_iou`, the mean of `intersection_over_union` over the classes that occur or are said; `accuracy`, the share of places that
    are right; `class_accuracy`, its mean over the classes that occur. Of a confusion matrix over a whole split, as is usual."""
    overlap = intersection_over_union(confusion)
    right, total = confusion.diagonal().double(), confusion.sum(1).double()
    return {
        "mean_iou": overlap.nanmean().item(),
        "accuracy": (right.sum() / total.sum()).item(),
        "class_accuracy": (right / total).nanmean().item(),
    }
