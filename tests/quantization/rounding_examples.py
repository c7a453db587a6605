"""A layer to round: a weight, and the Hessian of inputs that are correlated."""

import torch


def layer(rows=6, columns=20, seed=0):
    """Weight (rows, columns) and Hessian (columns, columns)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    hessian = 2 / 64 * x.T @ x
    return torch.randn(rows, columns, generator=generator), (hessian + hessian.T) / 2
