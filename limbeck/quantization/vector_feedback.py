"""Error feedback between vectors: GPTQ for grids whose codes stand for several consecutive inputs at once.

As in `gptq`, H = R R^T with R upper triangular, and errors E = W^ - W of the vectors before move those that are left. With G the
columns of a vector and F those rounded before it,

    t_G = W_G - E_F R_FG R_GG^-1,     the part of the output error that W^_G decides is  (W^_G - t_G) M (W^_G - t_G)^T,  M = R_GG R_GG^T

so t_G is put on the grid instead of W_G. A pyramid's point is taken along t_G and its length is the best one in M:

    g = (t M u^T) / (u M u^T),    u = p / ||p||_2

With vectors of one column this is GPTQ; with H = I it is rounding to the nearest. On other lattices the nearest point is taken.

Source: van der Ouderaa et al., "Pyramid vector quantization for LLMs", 2024 (error feedback by groups as in GPTQ, amplitudes fitted under the
Hessian, as its abstract and openings say); the feedback between vectors is that of Tseng et al., "QuIP#", ICML 2024, section 4 (block LDLQ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.contract import Packed
from limbeck.quantization.gptq import reversed_factor
from limbeck.quantization.granularity import PerChannel
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.lattices import ENTRIES, LatticeGrid, nearest_point
from limbeck.quantization.levels import ratios
from limbeck.quantization.packing import pack_bits
from limbeck.quantization.pyramids import PyramidGrid
from limbeck.quantization.rounding import LayerRounding, scale_rows

# (x (rows, d), scale (rows,), metric (d, d)) -> codes (rows, codes of one vector), values float32 (rows, d)
Put = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def vector_feedback(
    weight: Tensor, hessian: Tensor, scales: Tensor, group: Tensor, put: Put, entries: int, damping: float, order: bool
) -> Tensor:
    """The codes of a weight (out, n), vector by vector: (out, vectors x codes of one vector), in the stored order.

    hessian (n, n), in whose type everything is computed; scales (groups, out) and the group of every column (n,), see `scale_rows`;
    entries: columns of a vector; order: vectors of the largest mean diag(H) first. A last vector that is short is filled up with
    zeros, which cost nothing.
    """
    columns = weight.shape[1]
    vectors = list(torch.arange(columns, device=weight.device).split(entries))
    turn = list(range(len(vectors)))
    if order:
        size = torch.stack([hessian.diagonal()[v].mean() for v in vectors])
        turn = size.argsort(descending=True, stable=True).tolist()
    perm = torch.cat([vectors[v] for v in turn])
    factor = reversed_factor(hessian, perm, damping)
    original = weight[:, perm].to(hessian.dtype)
    error = torch.empty_like(original)
    codes: list[Tensor] = [weight] * len(vectors)
    low = 0
    for v in turn:
        width = len(vectors[v])
        own, high = slice(low, low + width), low + width
        block = factor[own, own]
        shift = torch.linalg.solve_triangular(block, error[:, :low] @ factor[:low, own], upper=True, left=False)
        metric = torch.zeros(entries, entries, dtype=factor.dtype, device=factor.device)
        metric[:width, :width] = block @ block.t()
        target = torch.nn.functional.pad(original[:, own] - shift, (0, entries - width)).float()
        codes[v], values = put(target, scales[group[vectors[v][0]]], metric)
        error[:, own] = values[:, :width] - original[:, own]
        low = high
    return torch.cat(codes, 1)


def onto(quantizer: Quantizer, shape: tuple[int, ...]) -> tuple[int, Put, Callable[[Tensor], Tensor]]:
    """Of the grids that hold vectors: entries of one, how they are put on the grid, and how codes are stored."""
    grid = quantizer.grid
    if isinstance(grid, PyramidGrid):
        levels = grid.levels(shape, quantizer.granularity)

        def put(x: Tensor, scale: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
            found, values = grid.nearest_vectors(x, scale, levels, metric)
            return found.unsqueeze(-1), values

        return grid.entries, put, grid.store
    if isinstance(grid, LatticeGrid):

        def nearest(x: Tensor, scale: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
            points, found = nearest_point(ratios(x, scale, PerChannel(0)), grid.width)
            return found, points * scale.unsqueeze(-1)

        return ENTRIES, nearest, lambda codes: pack_bits(codes, grid.width)
    raise UsageError(f"VectorFeedback is for pyramids and the lattice E8, not for {grid}: take GPTQ for single columns")


@dataclass(frozen=True)
class VectorFeedback(LayerRounding):
    """Vectors are rounded one after another, those that are left make up for the errors; see the module.

    damping     share of the mean of H's diagonal that is added to it
    act_order   vectors in order of falling mean diag(H)

    Scales are those of the weights before rounding. Raises UsageError for a damping that is not positive, and for grids other than
    "pyramid" and "e8".
    """

    damping: float = 0.01
    act_order: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping < float("inf"):
            raise UsageError(f"damping={self.damping!r}: must be above 0; 0.01 is usual")

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        entries, put, store = onto(quantizer, tuple(weight.shape))
        scale = quantizer.encode(weight).scale
        scales, group = scale_rows(scale.float(), *weight.shape, quantizer.granularity)
        settings = put, entries, self.damping, self.act_order
        codes = [
            vector_feedback(rows, h, own, group, *settings)
            for rows, h, own in zip(weight.chunk(len(hessian)), hessian, scales.chunk(len(hessian), dim=1))
        ]
        return Packed(store(torch.cat(codes)), scale, None, tuple(weight.shape))
