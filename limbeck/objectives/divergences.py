"""Divergences and distances as pure functions: one value per position, computed in float32 and in log space.

Arguments of half precision are promoted; float64 stays. The last axis holds the classes or the features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.objectives.positions import precise


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / T) over the last axis, in float32."""
    scores = precise(logits)
    return F.log_softmax(scores if temperature == 1 else scores / temperature, dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) = sum_i p_i (log p_i - log q_i) of log-probabilities (..., C); returns (...).

    A class with p_i = 0 contributes 0, also where q_i = 0; the result is finite as long as q_i > 0 wherever p_i > 0.
    """
    p = log_p.exp()
    if log_p.device.type == "cpu":  # elsewhere the question below would cost more than two passes over the classes
        plain = (p * (log_p - log_q)).sum(dim=-1)
        if not bool(plain.isnan().any()):
            return plain
    least = torch.finfo(log_p.dtype).min
    return (p * (log_p.clamp(min=least) - log_q.clamp(min=least))).sum(dim=-1)


def entropy(log_p: Tensor) -> Tensor:
    """H(p) = -sum_i p_i log p_i of log-probabilities (..., C); returns (...). A class with p_i = 0 contributes 0."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)


def cross_entropy(log_q: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """-(1 - s) sum_i p_i log q_i - s / C sum_i log q_i of log-probabilities (..., C); returns (...).

    `target` holds class indices (...) or probabilities p (..., C). The second term is label smoothing.
    """
    if target.is_floating_point():
        own = -(target * log_q).sum(dim=-1)
    else:
        own = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return own if not smoothing else (1 - smoothing) * own - smoothing * log_q.mean(dim=-1)


def mean_squared_error(x: Tensor, y: Tensor) -> Tensor:
    """mean_i (x_i - y_i)^2 over the last axis of (..., D); returns (...)."""
    return (precise(x) - precise(y)).square().mean(dim=-1)


def mean_absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """mean_i |x_i - y_i| over the last axis of (..., D); returns (...)."""
    return (precise(x) - precise(y)).abs().mean(dim=-1)


def smooth_absolute_error(x: Tensor, y: Tensor) -> Tensor:
    """mean_i of (x_i - y_i)^2 / 2 where |x_i - y_i| <= 1, else |x_i - y_i| - 1/2, over the last axis of (..., D); returns (...)."""
    return F.smooth_l1_loss(precise(x), precise(y), reduction="none").mean(dim=-1)


def half_squared_norm(x: Tensor, y: Tensor) -> Tensor:
    """1/2 sum_i (x_i - y_i)^2 over the last axis of (..., D); returns (...)."""
    return 0.5 * (precise(x) - precise(y)).square().sum(dim=-1)


def norm(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|_2 over the last axis of (..., D), with gradient 0 where both are equal; returns (...)."""
    return torch.linalg.vector_norm(precise(x) - precise(y), dim=-1)


def normalized(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32; a zero vector stays zero."""
    return F.normalize(precise(x), dim=-1)


def directions(x: Tensor) -> Tensor:
    """x / |x| over the last axis, in float32; a zero vector stays zero and gets no gradient (that of `normalized` explodes)."""
    length = torch.linalg.vector_norm(precise(x), dim=-1, keepdim=True)
    return torch.where(length > 0, precise(x) / torch.where(length > 0, length, 1.0), 0.0)


def direction_distance(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """| x / |x| - y / |y| | of whole tensors of one shape, with their Frobenius norms, in float32: a scalar, between 0 and 2.

    weights: of the squares of the entries, broadcast from the left. A tensor of zeros stays zero and gets no gradient.
    """
    if weights is not None:
        x, y = precise(x), precise(y)
        root = weights.to(x.dtype).reshape(*weights.shape, *[1] * (x.dim() - weights.dim())).sqrt()
        x, y = x * root, y * root
    return norm(directions(x.flatten()), directions(y.flatten()))


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - <x, y> / (|x| |y|) over the last axis of (..., D); returns (...), between 0 and 2."""
    return 1 - F.cosine_similarity(precise(x), precise(y), dim=-1)


def cosine_similarities(x: Tensor) -> Tensor:
    """The matrix of cosines between the rows of (B, D): (B, B), float32 also inside autocast."""
    with torch.autocast(x.device.type, enabled=False):
        x = normalized(x)
        return x @ x.transpose(0, 1)
