"""Calibration: does a confidence of 0.8 mean right 80 % of the time?

Predictions are grouped into bins of equal width by the confidence max_c softmax(logits)_c; bin b has n_b examples of mean
confidence conf_b and accuracy acc_b. The expected calibration error is

    ECE = sum_b (n_b / n) |acc_b - conf_b|

Bin b holds the confidences in (low, high]; an empty bin contributes nothing.
Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3. Deviation: none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError


def reliability(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, Any]:
    """The reliability diagram: {"bins": [{low, high, confidence, accuracy, count}], "error": ECE}, plain JSON.

    Shapes: logits (N, classes); labels (N,) of whole numbers. `confidence` and `accuracy` of an empty bin are 0.
    Raises DataError for no examples, UsageError for shapes that do not fit or fewer than one bin.
    """
    if bins < 1:
        raise UsageError(f"bins must be at least 1, not {bins}")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise UsageError(f"calibration needs logits (N, classes) and labels (N,), not {logits.shape}, {labels.shape}")
    if not len(labels):
        raise DataError("there are no predictions to measure calibration on")
    confidence, predicted = logits.double().softmax(-1).max(-1)
    right = (predicted == labels).double()
    number = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.bincount(number, minlength=bins)
    share = count.clamp_min(1).double()
    confidences = torch.bincount(number, confidence, bins) / share
    accuracies = torch.bincount(number, right, bins) / share
    error = (count.double() / len(labels) * (accuracies - confidences).abs()).sum().item()
    rows = [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "confidence": confidences[b].item(),
            "accuracy": accuracies[b].item(),
            "count": int(count[b]),
        }
        for b in range(bins)
    ]
    return {"bins": rows, "error": error}


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """The expected calibration error of `reliability`."""
    return reliability(logits, labels, bins)["error"]
