"""Linear probes: how much of the labels a linear classifier reads from frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.errors import UsageError


def linear_probe(features: Tensor, labels: Tensor, tested: Tensor, answers: Tensor, penalty: float = 1e-2) -> float:
    """Accuracy on `tested` of the ridge classifier that `features` and `labels` give.

    W = argmin mean_n |W x_n + b - onehot(y_n)|^2 + penalty |W|^2,   x: features, each dimension brought to mean 0 and deviation 1

    Shapes: features (n, D), labels (n,), tested (m, D), answers (m,). Computed in closed form in float64: no seed and no steps enter.
    Raises UsageError for shapes that do not fit and a penalty that is not positive.
    """
    pairs = ((features, labels), (tested, answers))
    if any(x.dim() != 2 or tuple(y.shape) != (len(x),) for x, y in pairs) or features.shape[1] != tested.shape[1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (features, labels, tested, answers))
        raise UsageError(f"linear_probe: features (n, D), labels (n,), tested (m, D), answers (m,); not {shapes}")
    if not penalty > 0:
        raise UsageError(f"linear_probe: penalty={penalty!r} must be above 0")
    x, other = features.double(), tested.double()
    centre, scale = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-12)
    x, other = (x - centre) / scale, (other - centre) / scale
    targets = torch.nn.functional.one_hot(labels.long()).double()
    mean = targets.mean(0)
    gram = x.T @ x / len(x) + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ (targets - mean) / len(x))
    return ((other @ weight + mean).argmax(1) == answers).double().mean().item()
