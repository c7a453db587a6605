"""Fake quantization: onto the grid and back in float, with gradients that training can use.

    x^ = s (clamp(round(x / s) + z, low, high) - z)

Straight-through estimator (Bengio et al., 2013): rounding counts as the identity and clamping as clamping,

    d x^ / d x = 1 where low <= round(x / s) + z <= high, else 0.

Learned step size (Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3, with a zero point):

    d x^ / d s = round(x / s) - x / s inside,   (low - z) below,   (high - z) above,

and the step's gradient is multiplied by g = 1 / sqrt(N high), N elements per step (section 2.2), through `scale_gradient`.

Other grids, values s l with levels l (`fake_on_grid`): the same with the nearest level in the place of round,

    d x^ / d x = 1 and d x^ / d s = l - x / s   where x / s lies between the outermost levels,   0 and l   beyond them.

Learned clipping (Choi et al., "PACT", 2018, eq. 2 and 3): the step follows from the range's upper end a, s = a / (high - z), and only what
is clipped moves it: d x^ / d a = 1 above, (low - z) / (high - z) below, 0 inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import Granularity, spread
from limbeck.quantization.grids import IntegerGrid, Quantizer
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.levels import LevelGrid, over


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        ratio = x / scale
        rounded = torch.round(ratio)
        unclamped = rounded + zero_point
        codes = unclamped.clamp(low, high)
        inside = unclamped == codes
        difference = torch.where(inside, rounded - ratio, codes - zero_point) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, difference)
        ctx.scale_shape = scale.shape
        return (codes - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient):
        return *_to_both(ctx, gradient), None, None, None


class _FakeLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, grid):
        ratio = over(x, scale)
        levels = grid.onto(ratio)
        lowest, highest = grid.rising[0][[0, -1]].tolist()
        inside = (ratio >= lowest) & (ratio <= highest) & (scale != 0)
        difference = torch.where(inside, levels - ratio, levels) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(inside, difference)
        ctx.scale_shape = scale.shape
        return levels * scale

    @staticmethod
    def backward(ctx, gradient):
        return *_to_both(ctx, gradient), None


def _to_both(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and of its scale, from what both functions save."""
    inside, difference = ctx.saved_tensors
    to_x = gradient * inside if ctx.needs_input_grad[0] else None
    to_scale = (gradient * difference).sum_to_size(ctx.scale_shape) if ctx.needs_input_grad[1] else None
    return to_x, to_scale


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | int, grid: IntegerGrid, granularity: Granularity
) -> Tensor:
    """x onto the grid and back, differentiable in x and, where it asks for a gradient, in scale.

    x (...); scale and zero_point of `parameter_shape(x.shape, granularity)`. Returns float32 (...), the very values of
    `dequantize(quantize(x))`.
    """
    scale = spread(scale.float(), x.shape, granularity)
    if isinstance(zero_point, Tensor):
        zero_point = spread(zero_point.float(), x.shape, granularity)
    return _FakeQuantize.apply(x.float(), scale, zero_point, grid.low, grid.high)


def scale_gradient(value: Tensor, factor: float) -> Tensor:
    """`value` itself, whose gradient is multiplied by `factor`."""
    return value.detach() + factor * (value - value.detach())


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of x, unchanged.  (...)"""
    return quantized.detach() + (x - x.detach())


def fake_on_grid(x: Tensor, parameter: Tensor, quantizer: Quantizer) -> Tensor:
    """x onto any grid with given parameters and back, differentiable in both; float32 (...), the very values of `project` and `decode`.

    parameter: scales, or codebooks, as `quantizer.layout(x.shape)` has them, in float32. Level grids and lattices: the gradients above
    (a lattice has no outermost level: d x^ / d x = 1 everywhere). Sums of binaries, codebooks, fourth roots and levels within a range: the identity to x, and to
    their scales, centres and levels what decoding says, with the codes held fixed. Integers go through `fake_quantize`.
    """
    grid, granularity = quantizer.grid, quantizer.granularity
    if isinstance(grid, IntegerGrid):
        return fake_quantize(x, parameter, grid.center, grid, granularity)
    if isinstance(grid, LevelGrid):
        return _FakeLevels.apply(x.float(), spread(parameter.float(), x.shape, granularity), grid)
    book = "codebook" in quantizer.layout(x.shape)
    packed = Packed(x.new_zeros(0), None if book else parameter, None, tuple(x.shape), parameter if book else None)
    stored = quantizer.project(x, Packed(**{**packed.__dict__, **{k: v.detach() for k, v in packed.tensors.items()}}))
    if not isinstance(grid, LatticeGrid):
        learned = {"codebook" if book else "scale": parameter}
        values = quantizer.decode(Packed(**{**stored.__dict__, **learned}))
        return values + (x.float() - x.detach().float())
    scale = spread(parameter.float(), x.shape, granularity)
    ratio = over(x.float(), scale)
    unit = Packed(stored.codes, torch.ones_like(parameter), None, tuple(x.shape))
    return (quantizer.decode(unit) + (ratio - ratio.detach())) * scale


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, upper, zero_point, low, high):
        scale = upper / (high - zero_point)
        unclamped = torch.round(x / scale) + zero_point
        codes = unclamped.clamp(low, high)
        ctx.save_for_backward(unclamped < low, unclamped > high)
        ctx.below = (low - zero_point) / (high - zero_point)
        return (codes - zero_point) * scale

    @staticmethod
    def backward(ctx, gradient):
        below, above = ctx.saved_tensors
        to_upper = (gradient * above).sum() + ctx.below * (gradient * below).sum()
        return gradient * ~(below | above), to_upper, None, None, None


def pact(x: Tensor, upper: Tensor, zero_point: int, grid: IntegerGrid) -> Tensor:
    """Activations on `grid` with a learned upper end: x (...), upper () positive -> float32 (...). zero_point: below grid.high."""
    return _Clip.apply(x.float(), upper, int(zero_point), grid.low, grid.high)
