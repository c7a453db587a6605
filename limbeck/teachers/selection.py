"""Which of several source models suits a target task: a score from a few labelled examples, and weights for teaching from all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UsageError


def ranks(x: Tensor) -> Tensor:
    """Ranks of the values of x (N,), from 0; equal values share their mean rank. float64."""
    _, place, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() + 1) / 2)[place]


def _distances(rows: Tensor) -> Tensor:
    """1 - Pearson's correlation of every pair of rows (N, D), above the diagonal: (N (N - 1) / 2,). A constant row correlates with none."""
    centred = rows - rows.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    above = torch.triu_indices(len(rows), len(rows), 1)
    return 1 - (unit @ unit.T)[above[0], above[1]]


def task_similarity(features: Tensor, labels: Tensor) -> float:
    """How far a source's features already tell the target's classes apart, from -1 to 1 (PARC).

    Spearman's correlation, over all pairs of examples, of the distance of their features with the distance of their one-hot labels;
    both distances are 1 - Pearson's correlation. features (N, D) of labelled target examples, labels (N,) of two or more classes.
    Source: Bolya, Mittapalli and Hoffman, "Scalable Diverse Model Selection for Accessible Transfer Learning", NeurIPS 2021, eq. 2
    to 4, without the reduction of dimensions and the factor 100.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1] or len(labels.unique()) < 2:
        raise UsageError(
            f"task_similarity: features {tuple(features.shape)} and labels {tuple(labels.shape)} must be (N, D) and (N,), with two "
            "classes or more"
        )
    classes = labels.unique(return_inverse=True)[1]
    hot = torch.nn.functional.one_hot(classes).double()
    pair = [ranks(_distances(rows).round(decimals=12)) for rows in (features.double(), hot)]
    x, y = (r - r.mean() for r in pair)
    scale = x.norm() * y.norm()
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def source_weights(scores: Sequence[float], power: float = 1.0) -> tuple[float, ...]:
    """w_s = max(score_s, 0)^power / sum: how much each source teaches; all alike where no score is above 0.

    power 0 weighs all sources with a positive score alike; towards infinity it leaves the best one alone. Source: Borup, Phoo and Hariharan,
    "Distilling from Similar Tasks for Transfer Learning on a Budget", ICCV 2023 (DistillWeighted), whose similarity and power could not be
    read.
    """
    if not scores or not all(math.isfinite(score) for score in scores) or not (math.isfinite(power) and power >= 0):
        raise UsageError(f"source_weights: scores={scores!r} must be finite, power={power!r} finite and at least 0")
    best = max(scores)
    if best <= 0:
        return (1 / len(scores),) * len(scores)
    raised = [(score / best) ** power if score > 0 else 0.0 for score in scores]
    return tuple(value / math.fsum(raised) for value in raised)
