"""Orthogonal matrices that spread outliers: Hadamard matrices with random signs, and uniformly random ones.

A Hadamard matrix has entries +1 and -1 and orthogonal rows. Sylvester: H_2n = [[H, H], [H, -H]]. Paley: for a prime p = 3 mod 4, order
p + 1; for a prime p = 1 mod 4, order 2 (p + 1); both from which differences are squares mod p. Products of these cover every
width of common transformers: 768 = 2^6 x 12, 1536, 5120 = 2^8 x 20, 11008 = 2^8 x 43 + ... has none and gets a random rotation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.errors import UsageError

ROTATIONS = ("hadamard", "random")


def hadamard(n: int) -> Tensor | None:
    """A Hadamard matrix (n, n) of +1 and -1 in float64, its first column all +1; None where neither construction gives one."""
    base, doublings = n, 0
    while True:
        found = torch.ones(1, 1, dtype=torch.float64) if base == 1 else _paley(base)
        if found is not None:
            break
        if base % 2:
            return None
        base, doublings = base // 2, doublings + 1
    for _ in range(doublings):
        found = torch.cat([torch.cat([found, found], 1), torch.cat([found, -found], 1)])
    return found * found[:, :1]


def _paley(n: int) -> Tensor | None:
    if n == 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    if n % 4:
        return None
    if _prime(n - 1) and (n - 1) % 4 == 3:
        core, size = _squares(n - 1), n
        matrix = torch.eye(size, dtype=torch.float64)
        matrix[0, 1:], matrix[1:, 0] = 1.0, -1.0
        matrix[1:, 1:] += core
        return matrix
    half = n // 2
    if _prime(half - 1) and (half - 1) % 4 == 1:
        matrix = torch.zeros(half, half, dtype=torch.float64)
        matrix[0, 1:], matrix[1:, 0] = 1.0, 1.0
        matrix[1:, 1:] = _squares(half - 1)
        ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(matrix, ones) + torch.kron(torch.eye(half, dtype=torch.float64), diagonal)
    return None


def _prime(n: int) -> bool:
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


def _squares(p: int) -> Tensor:
    """(p, p): +1 where i - j is a square mod p, -1 where it is not, 0 on the diagonal."""
    squares = {k * k % p for k in range(1, p)}
    character = torch.tensor([0.0] + [1.0 if k in squares else -1.0 for k in range(1, p)], dtype=torch.float64)
    index = torch.arange(p)
    return character[(index[:, None] - index) % p]


def rotation(n: int, kind: str = "hadamard", seed: int = 0, keep_mean: bool = False) -> Tensor:
    """An orthogonal matrix (n, n) in float64: H D / sqrt(n) with random signs D, or uniformly random.

    keep_mean: one that leaves the mean over channels alone, Q 1 = 1, so that a LayerNorm commutes with it: H D H^T / n with D_1 = 1
    (the first column of H is all ones), or a random rotation of what is orthogonal to 1. Where no Hadamard matrix of order n is
    built, "hadamard" is "random". Raises UsageError for another kind.
    """
    if kind not in ROTATIONS:
        raise UsageError(f"rotation {kind!r}: allowed are {', '.join(map(repr, ROTATIONS))}")
    draws = torch.Generator().manual_seed(seed)
    matrix = hadamard(n) if kind == "hadamard" else None
    if matrix is not None:
        signs = torch.randint(0, 2, (n,), generator=draws, dtype=torch.float64) * 2 - 1
        if not keep_mean:
            return matrix * signs / math.sqrt(n)
        signs[0] = 1.0
        return (matrix * signs) @ matrix.T / n
    if not keep_mean:
        return _random(n, draws)
    ones = torch.full((n, 1), 1 / math.sqrt(n), dtype=torch.float64)
    start = torch.cat([ones, torch.randn(n, n - 1, generator=draws, dtype=torch.float64)], 1)
    basis = torch.linalg.qr(start).Q[:, 1:]
    return ones @ ones.T + basis @ _random(n - 1, draws) @ basis.T


def _random(n: int, draws: torch.Generator) -> Tensor:
    """Uniform over orthogonal matrices: QR of a Gaussian matrix, with the signs of R's diagonal given to Q."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=draws, dtype=torch.float64))
    return q * r.diagonal().sign()
