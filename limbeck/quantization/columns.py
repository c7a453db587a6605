"""What rounding one column after another asks of a grid whose codes stand for numbers: integer, affine and level grids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.affine_grid import AffineGrid, affine_values
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerChannel
from limbeck.quantization.grids import IntegerGrid, Quantizer, dequantize, quantize
from limbeck.quantization.levels import LevelGrid, entries_of, level_scales, ratios

COLUMN = PerChannel(0)


def parameters(weight: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Scale, and zero point, offset or (for levels) zeros, of a weight (out, n), each of `parameter_shape`.

    Raises UsageError for grids whose codes stand for several weights, or that need several numbers for one.
    """
    grid = quantizer.grid
    if isinstance(grid, IntegerGrid) and not grid.identity:
        return quantizer.parameters(weight)
    if isinstance(grid, AffineGrid):
        return grid.parameters(weight, quantizer)
    if isinstance(grid, LevelGrid):
        scale = level_scales(weight, grid, quantizer.granularity, quantizer.method, quantizer.scale_type)[1]
        return scale, torch.zeros_like(scale)
    raise UsageError(f"column by column weights are rounded on integer, affine and level grids, not on {grid}")


def onto(quantizer: Quantizer) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(x (rows,), scale (rows,), second parameter (rows,)) -> codes int8 or uint8 (rows,), values float32 (rows,)."""
    grid = quantizer.grid
    if isinstance(grid, IntegerGrid):

        def put(x, scale, zero):
            codes = quantize(x, scale, zero, grid, COLUMN)
            return codes, dequantize(codes, scale, zero, COLUMN)

    elif isinstance(grid, AffineGrid):

        def put(x, scale, offset):
            codes = grid.nearest(x, scale, offset, COLUMN)
            return codes, affine_values(codes, scale, offset, COLUMN)

    else:

        def put(x, scale, _):
            codes = grid.nearest(ratios(x, scale, COLUMN))
            return codes, entries_of(grid.table, codes) * scale

    return put


def packed(quantizer: Quantizer, codes: Tensor, scale: Tensor, second: Tensor) -> Packed:
    """The stored form of codes (out, n) with the parameters of `parameters`."""
    grid = quantizer.grid
    if isinstance(grid, IntegerGrid):
        return quantizer.pack(codes, scale, second)
    if isinstance(grid, AffineGrid):
        return grid.pack(codes, scale, second)
    return Packed(grid.store(codes), scale, None, tuple(codes.shape))
