"""How far two sets of samples are from one distribution: pure functions of samples or of their features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.errors import UsageError


def maximum_mean_discrepancy(x: Tensor, y: Tensor, bandwidths: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0)) -> Tensor:
    """Squared maximum mean discrepancy with a mean of Gaussian kernels, unbiased (it may be slightly negative).

        k(a, b) = mean_h exp(-|a - b|^2 / (2 h^2))
        MMD^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean_ij k(x_i, y_j)

    Shapes: x (n, D), y (m, D), both flattened when they have more axes; a scalar. bandwidths: h, in units of the data.
    Source: Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, eq. 3.
    """
    x, y = _pair("maximum_mean_discrepancy", x, y)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.cdist(a, b).square()
        return sum(torch.exp(-squared / (2 * h * h)) for h in bandwidths) / len(bandwidths)

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def mode_coverage(samples: Tensor, centres: Tensor, radius: float, share: float = 0.5) -> dict[str, float]:
    """How samples spread over known modes.

    A sample within `radius` of its nearest centre belongs to that mode. coverage: the share of modes that hold at least `share` of
    their fair number of samples, N / K. precision: the share of samples that belong to a mode. balance: the entropy of the modes'
    counts over log K; 1 when all are equal. Shapes: samples (N, D), centres (K, D).
    """
    distance, nearest = torch.cdist(samples.double(), centres.double()).min(-1)
    counts = torch.bincount(nearest[distance <= radius], minlength=len(centres)).double()
    found = counts.sum().clamp(min=1)
    p = counts / found
    entropy = -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum()
    return {
        "coverage": (counts >= share * len(samples) / len(centres)).double().mean().item(),
        "precision": (counts.sum() / len(samples)).item(),
        "balance": (entropy / torch.tensor(float(max(len(centres), 2)), dtype=p.dtype).log()).item(),
    }


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The squared 2-Wasserstein distance between Gaussians fitted to two sets of features (FID, on whatever features these are).

        |m_x - m_y|^2 + trace(C_x + C_y - 2 (C_x C_y)^(1/2))

    The trace of the root is the sum of the singular values of C_x^(1/2) C_y^(1/2). Computed in float64 with unbiased covariances.
    Shapes: x (n, F), y (m, F). Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, eq. 6.
    """
    x, y = (value.double() for value in _pair("frechet_distance", x, y))

    def root(features: Tensor) -> tuple[Tensor, Tensor]:
        covariance = features.T.cov().reshape(features.shape[1], features.shape[1])
        values, vectors = torch.linalg.eigh(covariance)
        return covariance.trace(), vectors * values.clamp(min=0).sqrt() @ vectors.T

    (trace_x, root_x), (trace_y, root_y) = root(x), root(y)
    cross = torch.linalg.svdvals(root_x @ root_y).sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + trace_x + trace_y - 2 * cross).item()


def _pair(name: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.flatten(1), y.flatten(1)
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UsageError(
            f"{name}: two sets of at least 2 samples of one size are needed, not {tuple(x.shape)}, {tuple(y.shape)}"
        )
    return x, y
