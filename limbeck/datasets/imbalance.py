"""Class imbalance: thin a balanced set to a long tail, and weights that undo it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UsageError


def long_tailed(labels: Tensor, imbalance: float) -> Tensor:
    """Which examples stay so that class sizes fall exponentially: class c of C keeps n imbalance^(-c / (C - 1)) of its first.

    labels (N,) of whole numbers 0 ... C - 1, each there at least once; n is the size of the smallest class and `imbalance` the largest
    kept class over the smallest one. Each class keeps at least one. Returns positions in file order (M,).
    Source: Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019, section 4 (CIFAR-LT).
    """
    if isinstance(imbalance, bool) or not (math.isfinite(imbalance) and imbalance >= 1):
        raise UsageError(
            f"imbalance={imbalance!r} must be a finite number of at least 1: the largest class over the smallest"
        )
    sizes = labels.bincount()
    classes = len(sizes)
    if classes < 2 or int(sizes.min()) == 0:
        raise UsageError("long_tailed needs examples of two or more classes, numbered from 0 without gaps")
    kept = []
    for label in range(classes):
        count = max(1, round(int(sizes.min()) * imbalance ** (-label / (classes - 1))))
        kept.append((labels == label).nonzero().flatten()[:count])
    return torch.cat(kept).sort().values


def class_balanced_weights(counts: Sequence[int], beta: float = 0.9999) -> tuple[float, ...]:
    """w_c ~ (1 - beta) / (1 - beta^n_c), scaled to the mean 1: the inverse of the effective number of examples.

    beta 0 weights all alike; beta towards 1 gives 1 / n_c. Source: Cui et al., "Class-Balanced Loss Based on Effective Number of
    Samples", CVPR 2019, eq. 2.
    """
    if not 0 <= beta < 1 or not counts or min(counts) < 1:
        raise UsageError(f"class_balanced_weights: counts={counts!r} must be at least 1 and beta={beta!r} in [0, 1)")
    found = [(1 - beta) / -math.expm1(count * math.log(beta)) if beta else 1.0 for count in counts]
    return tuple(weight * len(found) / math.fsum(found) for weight in found)
