"""Quantizers for activations that a uniform grid per tensor does not fit: attention weights, and tokens of different size.

    logarithmic     x in [0, delta]:  q = clamp(round(-log_base(x / delta)), 0, 2^b - 1),   x^ = delta base^-q,   base 2 or sqrt(2)
    per token       a scale (and a zero point) for every position, from that position alone, at run time

With base sqrt(2) the power is a shift by ceil(q / 2) and a factor 1 + (sqrt(2) - 1) [q odd].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.plan import Plan
from limbeck.quantization.calibration import evaluating
from limbeck.quantization.grids import IntegerGrid, PerChannel, affine, dequantize, min_max, quantize
from limbeck.quantization.replacement import replace
from limbeck.signals import Tap, call, to_device

KIND = "quantize_softmax"
BASES = {"2": 2.0, "sqrt2": math.sqrt(2.0), "uniform": None}
QUANTILES = (0.99, 0.999, 0.9999, 1.0)
SAMPLE = 1 << 17


def log_codes(x: Tensor, delta: Tensor | float, bits: int, base: float, zero: bool = True) -> Tensor:
    """Codes of values x >= 0, uint8 (...): round(-log_base(x / delta)), kept to 0 ... 2^bits - 1.

    zero: the last code stands for 0, and whatever is below the smallest power by more than half a step gets it.
    """
    last = 2**bits - 1
    exponent = -torch.log2((x.float() / delta).clamp_min(torch.finfo(torch.float32).tiny)) / math.log2(base)
    return torch.round(exponent).clamp(0, last).to(torch.uint8)


def log_values(codes: Tensor, delta: Tensor | float, bits: int, base: float, zero: bool = True) -> Tensor:
    """The values delta base^-q, float32 (...); the last code is 0 where `zero`."""
    values = delta * torch.exp2(-codes.float() * math.log2(base))
    return values.masked_fill(codes == 2**bits - 1, 0.0) if zero else values


def quantized_share(x: Tensor, delta: Tensor | float, bits: int, base: str, zero: bool = True) -> Tensor:
    """x in [0, delta] onto its grid and back; base: "2", "sqrt2", or "uniform": delta / (2^bits - 1) times a whole number."""
    number = BASES[base]
    if number is None:
        step = delta / (2**bits - 1)
        return torch.round(x.float() / step).clamp(0, 2**bits - 1) * step
    return log_values(log_codes(x, delta, bits, number, zero), delta, bits, number, zero)


def per_token(x: Tensor, bits: int = 8, symmetric: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Codes with a scale and a zero point of each token: x (..., D) -> codes (..., D), scale (...), zero point (...).

    Symmetric: signed codes around 0; else unsigned codes of the range from the token's smallest to its largest value, 0 included.
    """
    grid = IntegerGrid(bits, signed=symmetric, symmetric=symmetric)
    rows = x.reshape(-1, x.shape[-1])
    scale, zero = affine(*min_max(rows, PerChannel(0)), grid)
    codes = quantize(rows, scale, zero, grid, PerChannel(0))
    return codes.view(x.shape), scale.view(x.shape[:-1]), zero.view(x.shape[:-1])


def from_tokens(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values of `per_token`, float32 (..., D)."""
    rows = codes.reshape(-1, codes.shape[-1])
    return dequantize(rows, scale.flatten(), zero_point.flatten(), PerChannel(0)).view(codes.shape)


class QuantizedSoftmax(nn.Softmax):
    """A softmax whose result is put on a grid of few bits. It computes in float what integer kernels would; it is no faster.
    The gradient goes straight through the rounding."""

    simulates_cost = True

    def __init__(self, dim: int, bits: int, base: str, delta: float, zero: bool):
        super().__init__(dim)
        self.bits, self.base, self.delta, self.zero = bits, base, delta, zero

    def forward(self, x: Tensor) -> Tensor:
        shares = super().forward(x)
        found = quantized_share(shares.detach(), self.delta, self.bits, self.base, self.zero).to(shares.dtype)
        return shares + (found - shares.detach()) if shares.requires_grad else found

    def extra_repr(self) -> str:
        return f"dim={self.dim}, bits={self.bits}, base={self.base!r}, delta={self.delta:.4g}"


@dataclass(frozen=True)
class QuantizeSoftmax:
    """Put attention weights on a grid of few bits: modules that are `nn.Softmax`, as in our own transformers.

    bits        2 to 8
    base        "sqrt2" or "2" (logarithmic), or "uniform"
    zero        logarithmic grids give their last code to 0; False: they end at their smallest power, as the formula of the paper does
    examples, batch_size    of the train split, for delta: the one of the 99, 99.9, 99.99 and 100 % quantiles with the least squared error

    Source: Li et al., "RepQ-ViT", ICCV 2023, eq. 12 to 17. The authors' code has zeros on top of 2^bits codes; here 0 is one of them.
    Models that compute their softmax without a module (those of transformers) are left alone: plan.decisions["paths"] is empty.
    """

    bits: int = 4
    base: str = "sqrt2"
    zero: bool = True
    examples: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise UsageError(f"QuantizeSoftmax: bits={self.bits!r} must be a whole number from 2 to 8")
        if self.base not in BASES:
            raise UsageError(f"QuantizeSoftmax: base={self.base!r}: allowed are {', '.join(map(repr, BASES))}")
        for name in ("examples", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"QuantizeSoftmax: {name}={value!r} must be a whole number of at least 1")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find delta of every softmax; the model stays as it is."""
        found = {path: module for path, module in model.named_modules() if path and type(module) is nn.Softmax}
        if found and task is None:
            raise UsageError("attention weights are calibrated on a task's train split and no task was given: pass one")
        seen: dict[str, list[Tensor]] = {}

        def visit(path: str, value: Tensor) -> None:
            value = value.detach().float().flatten()
            seen.setdefault(path, []).append(value[:: max(1, len(value) * 8 // SAMPLE)])

        with evaluating(model) as device, torch.no_grad(), Tap(model, found, visit):
            for batch in task.batches("train", self.batch_size, limit=self.examples) if found else ():
                call(model, to_device(batch, device))
        if found and not seen:
            raise DataError("calibration never reached a softmax, or the train split gave no batch")
        settings = {"bits": self.bits, "base": self.base, "zero": self.zero}
        paths = {
            path: {**settings, "dim": -1 if found[path].dim is None else found[path].dim, "delta": self._delta(values)}
            for path, values in seen.items()
        }
        return Plan(KIND, {"paths": paths, "left_alone": sorted(set(found) - set(paths))})

    def _delta(self, pieces: list[Tensor]) -> float:
        values = torch.cat(pieces)
        values = values[:: -(-len(values) // SAMPLE)].sort().values
        best, least = 1.0, math.inf
        for quantile in QUANTILES:
            delta = float(values[round(quantile * (len(values) - 1))])
            if delta <= 0:
                continue
            error = float((quantized_share(values, delta, self.bits, self.base, self.zero) - values).square().sum())
            if error < least:
                best, least = delta, error
        return best


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace every softmax the plan names. Raises ArtifactError where there is none, or for an entry that cannot be read."""
    for path, entry in plan.decisions.get("paths", {}).items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ArtifactError(f"the plan names {path!r}, which this {type(model).__name__} does not have") from error
        if type(module) is not nn.Softmax:
            raise ArtifactError(f"the plan expects a softmax at {path!r}, not {type(module).__name__}")
        try:
            made = QuantizedSoftmax(
                int(entry["dim"]), int(entry["bits"]), entry["base"], float(entry["delta"]), bool(entry["zero"])
            )
            if made.base not in BASES or not 2 <= made.bits <= 8 or not 0 < made.delta < math.inf:
                raise ValueError("its numbers are outside what is allowed")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the softmax plan's entry for {path!r} cannot be read: {error}") from error
        replace(model, path, made.train(module.training))
    return model
