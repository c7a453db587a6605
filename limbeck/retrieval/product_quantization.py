"""Product quantization: a vector is cut into parts, and each part is sent as the index of its nearest code.

Vectors x (N, D), codebooks (P, K, D / P), codes (N, P). Inner products with a query need P table look-ups per document.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.codecs.vector_quantization import kmeans, look_up, nearest
from limbeck.errors import UsageError


def cut(x: Tensor, parts: int) -> Tensor:
    """(N, D) -> (P, N, D / P). Raises UsageError where parts do not divide D."""
    if x.dim() != 2 or parts < 1 or x.shape[1] % parts:
        raise UsageError(f"product quantization: {parts} parts must divide the width of vectors {tuple(x.shape)}")
    return x.unflatten(1, (parts, -1)).transpose(0, 1)


def fit_codebooks(
    x: Tensor, parts: int, count: int, generator: torch.Generator | None = None, iterations: int = 25
) -> Tensor:
    """Codebooks (P, K, D / P) that minimize the distortion |x - x'|^2: k-means in each part.

    Source: Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", 2011.
    """
    return torch.stack([kmeans(part, count, iterations, generator) for part in cut(x, parts)])


def encode(x: Tensor, codebooks: Tensor) -> Tensor:
    """Codes (N, P) of vectors (N, D)."""
    return nearest(cut(x, len(codebooks)).transpose(0, 1), codebooks)


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Vectors (N, D) of codes (N, P)."""
    return look_up(codes, codebooks).flatten(1)


def straight_through(x: Tensor, codebooks: Tensor, temperature: float = 1.0) -> Tensor:
    """decode(encode(x)) with a gradient: the choice is the largest softmax(-|x_p - c_k|^2 / T), and its gradient that of the softmax.

    Source: Xiao et al., "Distill-VQ", SIGIR 2022, eq. 3 and 4 (the choice as in "Matching-oriented Product Quantization").
    """
    pieces = cut(x, len(codebooks))
    soft = torch.softmax(-(pieces.unsqueeze(2) - codebooks.unsqueeze(1)).square().sum(-1) / temperature, -1)
    hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    chosen = soft + (hard - soft).detach()
    return (chosen @ codebooks).transpose(0, 1).flatten(1)


def refit(x: Tensor, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """One Lloyd step: the codes of x and the codebooks whose codes are the means of what they stand for."""
    codes, moved = encode(x, codebooks), []
    for part, (piece, book) in enumerate(zip(cut(x, len(codebooks)), codebooks)):
        mass = torch.bincount(codes[:, part], minlength=len(book)).to(x.dtype)
        sums = torch.zeros_like(book).index_add(0, codes[:, part], piece)
        moved.append(torch.where(mass[:, None] > 0, sums / mass.clamp_min(1)[:, None], book))
    return codes, torch.stack(moved)


def fit_rotation(
    x: Tensor,
    parts: int,
    count: int,
    generator: torch.Generator | None = None,
    rounds: int = 25,
    iterations: int = 10,
) -> tuple[Tensor, Tensor]:
    """Optimized product quantization: rotation R (D, D) and codebooks that minimize |x R - q(x R)|^2.

    By turns: one Lloyd step of the codebooks on x R, then R = U V^T with x^T q(x R) = U S V^T (orthogonal Procrustes). Starts
    from R = 1. Source: Ge, He, Ke and Sun, "Optimized Product Quantization", 2013, section 3.1 (the non-parametric form).
    """
    rotation = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    codebooks = fit_codebooks(x, parts, count, generator, iterations)
    for _ in range(rounds):
        codes, codebooks = refit(x @ rotation, codebooks)
        u, _, v = torch.linalg.svd(x.T @ decode(codes, codebooks))
        rotation = u @ v
    return rotation, refit(x @ rotation, codebooks)[1]
