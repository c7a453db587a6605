"""Double rounding: one stored weight of the highest width, from which every smaller one is a shift.

    W_h = clip(round(W / s), -2^(h-1), 2^(h-1) - 1)
    W_l = clip(round(W_h / 2^d), -2^(l-1), 2^(l-1) - 1),    W^ = W_l 2^d s,    d = h - l

One scale s serves all widths; inputs have a scale of their own per width, unsigned with a zero point, and so has every batch normalization. Gradients
go straight through both roundings: d W^ / d W = 1 inside both clips, d W^ / d s = (W^ - W) / s inside and W_l 2^d outside, with the factor of learned steps
(`straight_through`).

    plans = {b: Quantize(bits=b, weights="tensor", activation_bits=b).plan(model, task) for b in (8, 4, 2)}
    prepare_switching(model, plans) -> Trainer.run(SwitchBits(model, None, CrossEntropy()), task)
        -> store_switching(model)      int8 codes in the place of float weights; switch(model, 4) as before

Source: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, eq. 1 to 5 and appendix A.4; the authors' repository holds no code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.quantization.grids import IntegerGrid, PerTensor
from limbeck.quantization.quantize import entries
from limbeck.quantization.replacement import float_weight_of, padding_of, replace
from limbeck.quantization.specification import InputRange
from limbeck.quantization.straight_through import fake_quantize, scale_gradient, straight_through

LEAST = 1e-3  # of its start, to which a scale may shrink


def highest_codes(weight: Tensor, scale: Tensor, highest: int) -> Tensor:
    """W_h of a weight (...) and a scale (); whole numbers in float32, differentiable as said above."""
    ratio = weight.float() / scale
    return straight_through(ratio, ratio.round()).clamp(-(2 ** (highest - 1)), 2 ** (highest - 1) - 1)


def shifted(codes: Tensor, highest: int, width: int) -> Tensor:
    """W_l of W_h (...), whole numbers: rounded, ties to even, and clipped; differentiable straight through the rounding."""
    ratio = codes.float() / 2 ** (highest - width)
    return straight_through(ratio, ratio.round()).clamp(-(2 ** (width - 1)), 2 ** (width - 1) - 1)


def double_round(weight: Tensor, scale: Tensor, highest: int, width: int) -> Tensor:
    """W^ of a weight (...) at a width.  (...)"""
    return shifted(highest_codes(weight, scale, highest), highest, width) * 2 ** (highest - width) * scale


class Switchable(nn.Module):
    """A Linear or Conv2d that computes at any of several widths; `width` says which. Made by `prepare_switching`.

    Parameters: weight, or after `store` the buffer `codes` (int8); weight_gain () and input_gain (widths,), the scales relative to those of the start,
    so that one learning rate fits all. zero_points: of inputs, by width.
    """

    simulates_cost = True

    def __init__(self, module: nn.Module, scale: float, inputs: Mapping[int, InputRange | None]):
        super().__init__()
        self.widths = tuple(sorted(inputs, reverse=True))
        self.weight, self.bias = module.weight, module.bias
        self._original = [module]  # in a list: no child, its parameters are these
        device = module.weight.device
        self.register_buffer("weight_start", torch.tensor(scale, device=device))
        self.weight_gain = nn.Parameter(torch.ones((), device=device))
        self.inputs = inputs[self.widths[0]] is not None
        if self.inputs:
            ranges = [inputs[width] for width in self.widths]
            self.register_buffer("input_start", torch.tensor([r.scale for r in ranges], device=device))
            self.input_gain = nn.Parameter(torch.ones(len(ranges), device=device))
            self.register_buffer("zero_points", torch.tensor([r.zero_point for r in ranges], device=device))
        self.width = self.widths[0]
        self.train(module.training)

    @property
    def highest(self) -> int:
        return self.widths[0]

    @property
    def scales(self) -> list[nn.Parameter]:
        """What is learned of the grids."""
        return [self.weight_gain, self.input_gain] if self.inputs else [self.weight_gain]

    @property
    def weight_scale(self) -> Tensor:
        """s, positive."""
        return self.weight_start * self.weight_gain.clamp(min=LEAST)

    def fake_weight(self) -> Tensor:
        """The weight at the width that is on, float32, in the shape of the original's."""
        scale = self.weight_scale
        if self.weight is None:
            return shifted(self.codes, self.highest, self.width) * 2 ** (self.highest - self.width) * scale
        factor = 1 / math.sqrt(self.weight.numel() * (2 ** (self.width - 1) - 1))
        return double_round(self.weight, scale_gradient(scale, factor), self.highest, self.width)

    def fake_input(self, x: Tensor) -> Tensor:
        """The input on the grid of the width that is on, float32."""
        if not self.inputs:
            return x.float()
        at = self.widths.index(self.width)
        grid = IntegerGrid(self.width, signed=False, symmetric=False)
        scale = self.input_start[at] * self.input_gain[at].clamp(min=LEAST)
        scale = scale_gradient(scale, 1 / math.sqrt(x[0].numel() * grid.high))
        return fake_quantize(x, scale, self.zero_points[at], grid, PerTensor())

    def forward(self, x: Tensor) -> Tensor:
        module, values, weight = self._original[0], self.fake_input(x), self.fake_weight()
        bias = None if self.bias is None else self.bias.float()
        if isinstance(module, nn.Conv2d):
            out = functional.conv2d(
                values, weight, bias, module.stride, padding_of(module), module.dilation, module.groups
            )
        else:
            out = functional.linear(values, float_weight_of(module, weight), bias)
        return out.to(x.dtype)

    @torch.no_grad()
    def store(self) -> None:
        """Keep W_h alone, as int8."""
        codes = highest_codes(self.weight, self.weight_scale, self.highest).to(torch.int8)
        self.weight = None
        self.register_buffer("codes", codes)

    @property
    def nbytes(self) -> float:
        """Bytes of what is stored, codes at the highest width."""
        small = [
            *self.scales,
            *([self.zero_points] if self.inputs else []),
            *([] if self.bias is None else [self.bias]),
        ]
        count = self.codes.numel() if self.weight is None else self.weight.numel()
        return count * self.highest / 8 + sum(t.numel() * 4 for t in small)

    def extra_repr(self) -> str:
        return f"widths={self.widths}, width={self.width}"


class SwitchedNorm(nn.Module):
    """Batch normalizations, one per width, all begun from one."""

    def __init__(self, norm: nn.BatchNorm2d, widths: tuple[int, ...]):
        super().__init__()
        self.width = widths[0]
        made = {}
        for width in widths:
            copied = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
            copied.load_state_dict(norm.state_dict())
            made[str(width)] = copied
        self.norms = nn.ModuleDict(made).to(next(iter(norm.parameters()), torch.zeros(0)).device)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[str(self.width)](x)


def prepare_switching(model: nn.Module, plans: Mapping[int, Plan]) -> nn.Module:
    """Make a model switchable between the widths of `plans`, in place, and return it at the highest.

    plans: by width, quantize plans of the same modules, with one scale per tensor; each gives the start of its width's input ranges (static, or none
    at all), the highest one that of the shared weight scale. Batch normalizations (2-d) get one copy per width.
    Raises UsageError for fewer than two widths, widths outside 2 to 8, and plans that do not fit together.
    """
    widths = sorted(plans, reverse=True)
    if len(widths) < 2 or any(type(width) is not int or not 2 <= width <= 8 for width in widths):
        raise UsageError(f"plans has the widths {widths}: give two or more of 2 to 8")
    found = {width: {path: (m, s) for path, m, s in entries(model, plans[width])} for width in widths}
    paths = found[widths[0]]
    if not paths or any(set(found[width]) != set(paths) for width in widths):
        raise UsageError("the plans of all widths must name the same modules, and some module")
    for path, (_, first) in paths.items():
        given = [found[width][path][1].input for width in widths]
        static = [isinstance(entry, InputRange) for entry in given]
        if not (all(static) or all(entry is None for entry in given)):
            raise UsageError(f"{path}: inputs of all widths are static, or none is")
        if first.granularity != PerTensor() or any(s and e.bits != w for s, e, w in zip(static, given, widths)):
            raise UsageError(f'{path}: plans need weights="tensor" and activation_bits of their width')
    for path, (module, _) in paths.items():
        weight = module.weight.detach().float()
        scale = float(weight.abs().max()) / (2 ** (widths[0] - 1) - 1) or 1.0
        inputs = {width: found[width][path][1].input for width in widths}
        replace(model, path, Switchable(module, scale, inputs))
    for path, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm2d:
            replace(model, path, SwitchedNorm(module, tuple(widths)))
    return switch(model, widths[0])


def switchable(model: nn.Module) -> dict[str, Switchable]:
    """The switchable layers of a model by path, in its order. Raises UsageError where there is none."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, Switchable)}
    if not found:
        raise UsageError("this model has no switchable layer: call prepare_switching first")
    return found


def switch(model: nn.Module, width: int | Mapping[str, int]) -> nn.Module:
    """Set the width of every layer, or of each by path; a normalization takes that of the switchable layer before it."""
    layers = switchable(model)
    chosen = dict.fromkeys(layers, width) if isinstance(width, int) else dict(width)
    if set(chosen) != set(layers):
        raise UsageError(f"width: name every switchable layer, {', '.join(layers)}")
    for path, layer in layers.items():
        if chosen[path] not in layer.widths:
            raise UsageError(f"{path}: width={chosen[path]!r} is none of {layer.widths}")
    last = next(iter(chosen.values()))
    for path, module in model.named_modules():
        if path in chosen:
            last = chosen[path]
            module.width = last
        elif isinstance(module, SwitchedNorm):
            module.width = last
    return model


def store_switching(model: nn.Module) -> nn.Module:
    """Drop the float weights, in place: what is left of each is W_h as int8. Every width computes what it did."""
    for layer in switchable(model).values():
        if layer.weight is not None:
            layer.store()
    return model
