"""Quantization-aware training: the model trains with its rounding simulated, on the grid of a Quantize plan.

    fold batch norms -> plan = Quantize(...).plan(model, task) -> prepare_qat(model, plan) -> train as usual
        -> model, plan = finish_qat(model, task) -> apply(model, plan)

Weights, on any grid: scales follow the weights at every step (straight-through estimator), or are learned (`learned=True`, LSQ).
Inputs: the plan's static ranges, kept fixed, followed by an exponential moving average (`average`), or learned: steps
(`learned=True`) or upper ends (`learned="clip"`, PACT); dynamic inputs as at run time. Ternary weights whose scale is the mean or
the median magnitude, with dynamic int8 inputs, are BitNet b1.58 (`normalize_inputs` adds its norms).
Sources and gradients: `limbeck.quantization.straight_through`.
The quantized model computes what the fake-quantized one did, up to the rounding of float sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.quantization.binaries import BinarySum
from limbeck.quantization.contract import SCALE_TYPES
from limbeck.quantization.granularity import PerTensor, min_max
from limbeck.quantization.grids import IntegerGrid, affine
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.levels import LevelGrid
from limbeck.quantization.modules import fake_quantize_rows
from limbeck.quantization.quantize import entries
from limbeck.quantization.ranges import output_ranges
from limbeck.quantization.replacement import float_weight_of, padding_of, replace
from limbeck.quantization.specification import COMPUTE, InputRange, Specification
from limbeck.quantization.straight_through import fake_on_grid, fake_quantize, pact, scale_gradient, straight_through
from limbeck.signals import match_paths

_PLAN = "_limbeck_qat_plan"


class FakeQuantized(nn.Module):
    """A Linear or Conv2d whose weight and input go onto their grids and back: the same Parameters, trained as before.

    x as the original takes it. `average` is the decay of the moving input range (None: fixed); with `learned` the weight
    scales (of codebook grids the codebooks) and the static input step are Parameters, with learned="clip" the input's upper end is.
    """

    simulates_cost = True

    def __init__(self, module: nn.Module, specification: Specification, learned: bool | str, average: float | None):
        super().__init__()
        self.specification = specification
        self.weight, self.bias = module.weight, module.bias
        self._original = [module]  # in a list: no child, its parameters are these
        self.average = average
        quantizer, matrix = specification.quantizer, self.matrix.detach()
        start = specification.encode(matrix).tensors[specification.parameter].float()
        self.learned = learned is True or specification.learned_scale is not None
        if self.learned:
            self.weight_scale = nn.Parameter(start)
        elif specification.method == "mse" and isinstance(quantizer.grid, (IntegerGrid, LevelGrid, LatticeGrid)):
            widest = dataclasses.replace(quantizer, method="minmax").encode(matrix).scale.float()
            self.register_buffer("weight_clip", start / torch.where(widest == 0, 1.0, widest))
        self.step_factor = 1.0 / math.sqrt(matrix.numel() / max(start.numel(), 1) * _positive(quantizer.grid))
        static = specification.input
        if isinstance(static, InputRange):
            scale = torch.tensor(static.scale, dtype=torch.float32, device=matrix.device)
            if learned == "clip":
                self.input_upper = nn.Parameter(scale * (static.grid.high - static.zero_point))
            elif learned:
                self.input_scale = nn.Parameter(scale)
            else:
                self.register_buffer("input_scale", scale)
            self.register_buffer("input_zero_point", torch.tensor(static.zero_point, device=matrix.device))
            if average is not None:
                self.register_buffer("input_low", (static.grid.low - self.input_zero_point) * scale)
                self.register_buffer("input_high", (static.grid.high - self.input_zero_point) * scale)
        self.train(module.training)

    @property
    def matrix(self) -> Tensor:
        """The weight as a matrix (out, n)."""
        return float_weight_of(self._original[0], self.weight).flatten(1)

    def weight_parameters(self) -> tuple[Tensor, Tensor]:
        """Scale (with its scaled gradient where learned) and zero point of the weight now."""
        specification, matrix = self.specification, self.matrix.detach()
        grid = specification.quantizer.grid
        if self.learned:
            scale = self.learned_parameter()
            return scale, torch.full_like(scale, grid.center, dtype=torch.int32)
        scale, zero = affine(*min_max(matrix, specification.granularity), grid, specification.scale_type)
        return (self._stored(scale * self.weight_clip) if hasattr(self, "weight_clip") else scale), zero

    def learned_parameter(self) -> Tensor:
        """The learned scales or codebooks as they are stored, with their scaled gradient; scales stay positive where they must."""
        value = self.weight_scale
        if isinstance(self.specification.quantizer.grid, (IntegerGrid, LevelGrid)):
            value = value.clamp(min=torch.finfo(torch.float32).tiny)
        return scale_gradient(self._stored(value), self.step_factor)

    def _stored(self, value: Tensor) -> Tensor:
        kind = SCALE_TYPES[self.specification.scale_type]
        return straight_through(value, value.to(kind).float())

    def fake_weight(self) -> Tensor:
        """The weight on its grid, float32, as a matrix (out, n)."""
        specification, quantizer = self.specification, self.specification.quantizer
        if isinstance(quantizer.grid, IntegerGrid):
            return fake_quantize(self.matrix, *self.weight_parameters(), quantizer.grid, specification.granularity)
        if self.learned:
            return fake_on_grid(self.matrix, self.learned_parameter(), quantizer)
        if hasattr(self, "weight_clip"):
            return fake_on_grid(self.matrix, self._clipped(), quantizer)
        return straight_through(self.matrix.float(), quantizer.grid.rounded(self.matrix.detach(), quantizer))

    def _clipped(self) -> Tensor:
        widest = dataclasses.replace(self.specification.quantizer, method="minmax").encode(self.matrix).scale.float()
        return self._stored(widest * self.weight_clip)

    def fake_input(self, x: Tensor) -> Tensor:
        """The input on its grid, float32."""
        static = self.specification.input
        if static is None:
            return x.float()
        if not isinstance(static, InputRange):
            flat = x.float() if self.is_convolution else x.float().flatten(0, -2)
            return fake_quantize_rows(flat, static.bits).view(x.shape)
        if self.average is not None and self.training:
            self._follow(x.detach().float(), static.grid)
        if hasattr(self, "input_upper"):
            upper = self.input_upper.clamp(min=torch.finfo(torch.float32).tiny)
            return pact(x, upper, static.zero_point, static.grid)
        scale = self.input_scale
        if isinstance(scale, nn.Parameter):
            factor = 1.0 / math.sqrt(x.numel() / x.shape[0] * static.grid.high)
            scale = scale_gradient(scale.clamp(min=torch.finfo(torch.float32).tiny), factor)
        return fake_quantize(x, scale, self.input_zero_point, static.grid, PerTensor())

    def _follow(self, x: Tensor, grid: IntegerGrid) -> None:
        low, high = torch.aminmax(x)
        self.input_low.lerp_(low.clamp(max=0), 1 - self.average)
        self.input_high.lerp_(high.clamp(min=0), 1 - self.average)
        scale, zero = affine(self.input_low, self.input_high, grid)
        self.input_scale.copy_(scale)
        self.input_zero_point.copy_(zero)

    @property
    def is_convolution(self) -> bool:
        return isinstance(self._original[0], nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        original, compute = self._original[0], COMPUTE[self.specification.compute]
        weight, values = self.fake_weight().to(compute), self.fake_input(x).to(compute)
        bias = None if self.bias is None else self.bias.to(compute)
        if not self.is_convolution:
            return functional.linear(values, weight, bias).to(x.dtype)
        weight = weight.view(self.weight.shape)
        padding = padding_of(original)
        return functional.conv2d(values, weight, bias, original.stride, padding, original.dilation, original.groups).to(
            x.dtype
        )

    def restored(self) -> nn.Module:
        """The float module with the trained weights."""
        original = self._original[0]
        original.weight, original.bias = self.weight, self.bias
        return original.train(self.training)

    def final(self) -> Specification:
        """The specification that apply() needs to land on the very same grid."""
        specification, static = self.specification, self.specification.input
        if isinstance(static, InputRange):
            scale = (
                self.input_upper / (static.grid.high - static.zero_point)
                if hasattr(self, "input_upper")
                else self.input_scale
            )
            scale = max(float(scale.detach()), torch.finfo(torch.float32).tiny)
            static = InputRange(static.bits, scale, int(self.input_zero_point))
        scale = None
        if self.learned or hasattr(self, "weight_clip"):
            integers = isinstance(specification.quantizer.grid, IntegerGrid)
            value = (
                self.weight_parameters()[0]
                if integers
                else self.learned_parameter()
                if self.learned
                else self._clipped()
            )
            scale = tuple(value.detach().flatten().tolist())
        return dataclasses.replace(specification, input=static, learned_scale=scale)


def _positive(grid: Any) -> float:
    """How many values lie above 0: what LSQ scales the step's gradient with. 1 for grids whose parameters are values themselves."""
    if isinstance(grid, IntegerGrid):
        return grid.high
    if isinstance(grid, LevelGrid):
        return max(1, int((grid.rising[0] > 0).sum()))
    return 2 ** (grid.bits - 1) if not isinstance(grid, BinarySum) and grid.whole is not None else 1.0


def normalize_inputs(model: nn.Module, only: str | Sequence[str] = "*") -> nn.Module:
    """Put a normalization without parameters before every linear layer, in place: Sequential(LayerNorm, Linear).

    BitNet's layers normalize their inputs before they quantize them (Wang et al., 2023, section 2.1), so that int8 per token holds them.
    only: patterns of module paths. Raises UsageError where there is no linear layer.
    """
    wanted = {path for pattern in ([only] if isinstance(only, str) else only) for path in match_paths(model, pattern)}
    found = [(path, module) for path, module in model.named_modules() if type(module) is nn.Linear and path in wanted]
    if not found:
        raise UsageError(f"normalize_inputs: no linear layer under {only!r}")
    for path, module in found:
        norm = nn.LayerNorm(module.in_features, elementwise_affine=False, device=module.weight.device)
        replace(model, path, nn.Sequential(norm, module).train(module.training))
    return model


def prepare_qat(
    model: nn.Module, plan: Plan, *, learned: bool | str = False, average: float | None = None
) -> nn.Module:
    """Replace, in place, every module that a quantize plan names by a FakeQuantized one; returns the model.

    learned   True: weight scales and static input steps are learned (LSQ, started from the plan's) instead of following the weights.
              "clip": the upper ends of static inputs are learned (PACT), the weights' scales follow
    average   decay of the moving average that static input ranges follow in training mode, e.g. 0.99; None keeps the plan's

    Raises UsageError for a plan without modules, settings that exclude each other, or asymmetric weights that would need
    more than their extremes (learned scales, method "mse").
    """
    if learned not in (True, False, "clip"):
        raise UsageError(f"learned={learned!r}: allowed are True, False and 'clip'")
    if average is not None and (learned or not 0.0 < average < 1.0):
        raise UsageError(f"average={average!r}: must lie between 0 and 1, and learned steps follow no average")
    found = entries(model, plan)
    if plan.kind != "quantize" or not found:
        raise UsageError(f"quantization-aware training needs a quantize plan that names modules, not {plan.kind!r}")
    for path, _, specification in found:
        static = specification.input
        if learned == "clip" and not (isinstance(static, InputRange) and static.zero_point < static.grid.high):
            raise UsageError(f"{path}: learned='clip' needs static inputs that reach above 0")
        if (
            learned is True
            and specification.grid is not None
            and "zero_point" in specification.quantizer.layout((2, 64))
            and specification.parameter != "codebook"
        ):
            raise UsageError(f"{path}: scales of {specification.grid} cannot be learned here: it has offsets, too")
        if not specification.symmetric and (learned is True or specification.method != "minmax"):
            raise UsageError(f"{path}: asymmetric weights train with method 'minmax' and without learned scales")
    for path, module, specification in found:
        replace(model, path, FakeQuantized(module, specification, learned, average))
    object.__setattr__(model, _PLAN, plan)
    return model


def finish_qat(model: nn.Module, task: Any = None) -> tuple[nn.Module, Plan]:
    """Undo `prepare_qat`, in place: the float model with the trained weights, and the plan with the final ranges.

    `apply(model, plan)` then computes what the fake-quantized model computed. Ranges of module outputs, which only an
    export needs, have moved with the weights: they are calibrated again on the task, and dropped without one.
    """
    plan = getattr(model, _PLAN, None)
    fakes = {path: module for path, module in model.named_modules() if isinstance(module, FakeQuantized)}
    if plan is None or not fakes:
        raise UsageError("this model was not prepared for quantization-aware training: call prepare_qat first")
    decisions = {name: value for name, value in plan.decisions.items() if name not in ("rounding", "data")}
    if decisions.get("outputs"):
        decisions["outputs"] = output_ranges(model, list(decisions["outputs"]), task, decisions) if task else {}
    decisions["modules"] = {
        path: {"type": entry["type"], **fakes[path].final().to_json()} for path, entry in decisions["modules"].items()
    }
    for path, module in fakes.items():
        replace(model, path, module.restored())
    object.__delattr__(model, _PLAN)
    return model, Plan(plan.kind, decisions)
