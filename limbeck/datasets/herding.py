"""Herding: which few examples stand for many, chosen one after the other so that their mean follows the mean of all."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UsageError


def herding(features: Tensor, count: int, normalize: bool = True) -> Tensor:
    """Positions (count,) of the examples chosen from features (N, D), the most representative first.

        p_k = argmin_x | mu - 1/k (phi(x) + sum_{j<k} phi(p_j)) |,   mu = mean of all phi

    No example is chosen twice, so the first m of a longer choice are the choice of m. normalize: scale features to length 1.
    Raises UsageError for a count outside 1..N. Source: Welling, "Herding dynamical weights to learn", 2009, as used for
    exemplars in Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, algorithm 4.
    """
    if features.dim() != 2 or not 1 <= count <= len(features):
        raise UsageError(
            f"herding: cannot choose count={count} of features {tuple(features.shape)}: give 1 to N of (N, D)"
        )
    found = torch.nn.functional.normalize(features.double(), dim=1) if normalize else features.double()
    mean, total = found.mean(0), torch.zeros_like(found[0])
    free = torch.ones(len(found), dtype=torch.bool, device=found.device)
    chosen = []
    for k in range(1, count + 1):
        distance = (mean - (found + total) / k).square().sum(1).masked_fill(~free, torch.inf)
        best = int(distance.argmin())
        chosen.append(best)
        free[best] = False
        total = total + found[best]
    return torch.tensor(chosen, device=features.device)
