"""Scale reparameterization: activations are quantized channel by channel, and run with one scale for the whole layer.

Channel j of a norm's output has its own scale s_j and zero point z_j. With s~ the mean of the scales, z~ that of the zero points,

    r1 = s / s~,   r2 = z - z~:      gamma' = gamma / r1,   beta' = (beta + s r2) / r1,      W' = W diag(r1),   b' = b - W (s r2)

the codes of x' on the common grid (s~, z~) are those of x on its channels' grids, and W' x'^ + b' = W x^ + b, exactly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.plan import Plan, in_sequence
from limbeck.plan import apply as carry_out
from limbeck.pruning.importance import input_rows
from limbeck.quantization.activations import QuantizeSoftmax
from limbeck.quantization.calibration import evaluating
from limbeck.quantization.equivalence.folds import Fold, rescale_plan
from limbeck.quantization.equivalence.layouts import layout
from limbeck.quantization.equivalence.smooth import check_counts, chosen, unread
from limbeck.quantization.grids import IntegerGrid
from limbeck.quantization.quantize import Quantize
from limbeck.signals import Tap, call, to_device

RANGES = ("clipping", "percentile", "minmax")
PERCENT = 0.999
ROWS = 4096


def on_channel_grids(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """x (n, channels) onto the grid of each channel's range and back; low, high (channels,). Ranges need not contain 0."""
    scale, zero = channel_grid(low, high, bits)
    return ((torch.round(x / scale) + zero).clamp(0, 2**bits - 1) - zero) * scale


def channel_grid(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges: s = (high - low) / (2^bits - 1), z = round(-low / s), any whole number."""
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-8)
    return scale, torch.round(-low / scale)


def channel_ranges(x: Tensor, bits: int, method: str, steps: int = 24, smallest: float = 0.3) -> tuple[Tensor, Tensor]:
    """The range of every channel of x (n, channels): low, high (channels,).

    "minmax"; "percentile": 0.1 % off at either end; "clipping": each end moved towards the middle by a factor of its own in
    {1, ..., smallest}, whichever gives the least squared error (upper end, lower end, upper end again).
    """
    if method == "percentile":
        return torch.quantile(x, 1 - PERCENT, 0), torch.quantile(x, PERCENT, 0)
    low, high = x.amin(0), x.amax(0)
    if method == "minmax":
        return low, high
    middle, half = (low + high) / 2, (high - low) / 2
    factors = [torch.ones_like(low), torch.ones_like(low)]
    for side in (1, 0, 1):
        best, least = factors[side], torch.full_like(low, torch.inf)
        for factor in torch.linspace(1.0, smallest, steps).tolist():
            trial = list(factors)
            trial[side] = torch.full_like(low, factor)
            error = (on_channel_grids(x, middle - trial[0] * half, middle + trial[1] * half, bits) - x).square().sum(0)
            best, least = torch.where(error < least, trial[side], best), torch.minimum(error, least)
        factors[side] = best
    return middle - factors[0] * half, middle + factors[1] * half


@dataclass(frozen=True)
class Reparameterize:
    """Fold the scales and zero points that every channel of a norm's output would like into the norm and what reads it.

    bits        of the activations, 2 to 8
    ranges      per channel: "clipping" (both ends, least squared error), "percentile" (0.1 % off either end) or "minmax"
    examples, batch_size    calibration examples of the train split

    The float model computes what it did. plan.decisions["ranges"] holds the common grid of every layer that reads a norm, as a
    quantization plan has it: with it (see `RepQuant`) one scale per layer gives what one per channel gave. Norms without a bias
    cannot shift their output; they, and what no table knows, are left alone and listed.
    """

    bits: int = 4
    ranges: str = "clipping"
    examples: int = 64
    batch_size: int = 16

    def __post_init__(self) -> None:
        IntegerGrid(self.bits)
        if self.bits == 32 or self.ranges not in RANGES:
            allowed = ", ".join(map(repr, RANGES))
            raise UsageError(
                f"Reparameterize: bits={self.bits}, ranges={self.ranges!r}: 2 to 8 bits, and one of {allowed}"
            )
        check_counts("Reparameterize", examples=self.examples, batch_size=self.batch_size)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find every channel's grid; the model stays as it is."""
        known = layout(model)
        folds = [
            f for f in chosen(known, ("norm",)) if getattr(model.get_submodule(f.source), "bias", None) is not None
        ]
        rows = self._rows(model, task, folds)
        scales, shifts, ranges = {}, {}, {}
        for fold in (fold for fold in folds if fold.source in rows):
            scale, zero = channel_grid(*channel_ranges(rows[fold.source].float(), self.bits, self.ranges), self.bits)
            common = float(scale.mean())
            middle = int(zero.mean().round().clamp(0, 2**self.bits - 1))
            scales[fold.source] = scale / common
            shifts[fold.source] = -scale * (zero - middle)
            entry = {"bits": self.bits, "scale": common, "zero_point": middle}
            ranges |= dict.fromkeys(fold.readers, entry)
        folds = [fold for fold in folds if fold.source in scales]
        return rescale_plan(folds, scales, shifts, ranges=ranges, left_alone=unread(known, folds))

    def _rows(self, model: nn.Module, task: Any, folds: list[Fold]) -> dict[str, Tensor]:
        """Up to ROWS inputs of every fold's first reader, evenly from all batches."""
        if folds and task is None:
            raise UsageError("channel ranges are calibrated on a task's train split and no task was given: pass one")
        modules, batch, seen = dict(model.named_modules()), {}, {}
        sources = {fold.readers[0]: fold.source for fold in folds}

        def visit(name: str, value: Tensor) -> None:
            path = name.removesuffix(":input")
            seen.setdefault(sources[path], []).append(input_rows(modules[path], value, batch))

        with evaluating(model) as device, torch.no_grad(), Tap(model, {f"{path}:input" for path in sources}, visit):
            for given in task.batches("train", self.batch_size, limit=self.examples) if folds else ():
                batch = to_device(given, device)
                call(model, batch)
        whole = {path: torch.cat(pieces) for path, pieces in seen.items()}
        return {path: x[:: -(-len(x) // ROWS)] for path, x in whole.items() if len(x)}


@dataclass(frozen=True)
class RepQuant:
    """Post-training quantization of transformers to few bits of weights and activations alike, in one plan:

    1. `Reparameterize`: norms' outputs are calibrated channel by channel, and run with one scale per layer;
    2. `QuantizeSoftmax`: attention weights on a logarithmic grid of base sqrt(2), where the softmax is a module;
    3. `Quantize` with static activations: the weights of the folded model, one scale per output channel, by `rounding`.

    Source: Li et al., "RepQuant", 2024, of which no code is public, and its predecessor RepQ-ViT, ICCV 2023, whose code was read: the
    fold agrees. It has steps 1 and 2, each range the best of three percentiles, and leaves the mean zero point unrounded; here it is
    a whole number, so that the fold is exact. The paper learns the two clipping bounds by gradient; here they are searched. It
    reconstructs weights from quantized inputs; "gptq" from those of the rounded weights before, with activations in float.
    """

    bits: int = 4
    activation_bits: int = 4
    softmax_bits: int = 4
    ranges: str = "clipping"
    base: str = "sqrt2"
    rounding: Any = "gptq"
    examples: int = 64
    batch_size: int = 16
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self.steps

    @property
    def steps(self) -> tuple[Reparameterize, QuantizeSoftmax, Quantize]:
        """The three transforms."""
        data = {"examples": self.examples, "batch_size": self.batch_size}
        quantize = Quantize(
            bits=self.bits, activation_bits=self.activation_bits, rounding=self.rounding, ignore=self.ignore, **data
        )
        softmax = QuantizeSoftmax(self.softmax_bits, self.base, **data)
        return Reparameterize(self.activation_bits, self.ranges, **data), softmax, quantize

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide on a copy, step by step; the model stays as it is."""
        trial = copy.deepcopy(model)
        fold, softmax, quantize = self.steps
        folded = fold.plan(trial, task)
        carry_out(trial, folded)
        shares = softmax.plan(trial, task)
        decided = quantize.plan(trial, task)
        modules = {
            path: {**entry, "input": folded.decisions["ranges"].get(path, entry["input"])}
            for path, entry in decided.decisions["modules"].items()
        }
        last = Plan(decided.kind, {**decided.decisions, "modules": modules}, decided.version)
        return in_sequence(folded, shares, last)
