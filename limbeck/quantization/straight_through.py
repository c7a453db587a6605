"""Fake quantization: onto the grid and back in float, with gradients that training can use.

    x^ = s (clamp(round(x / s) + z, low, high) - z)

Straight-through estimator (Bengio et al., 2013): rounding counts as the identity and clamping as clamping,

    d x^ / d x = 1 where low <= round(x / s) + z <= high, else 0.

Learned step size (Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3, with a zero point):

    d x^ / d s = round(x / s) - x / s inside,   (low - z) below,   (high - z) above,

and the step's gradient is multiplied by g = 1 / sqrt(N high), N elements per step (section 2.2), through `scale_gradient`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.quantization.grids import Granularity, IntegerGrid, spread


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
        inside, difference = ctx.saved_tensors
        to_x = gradient * inside if ctx.needs_input_grad[0] else None
        to_scale = (gradient * difference).sum_to_size(ctx.scale_shape) if ctx.needs_input_grad[1] else None
        return to_x, to_scale, None, None, None


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
