"""MixedPrecision: bits chosen layer by layer under a budget of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.budget import Budget
from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.quantization.calibration import evaluating
from limbeck.quantization.equivalence.statistics import channel_statistics
from limbeck.quantization.grids import IDENTITY_BITS
from limbeck.quantization.quantize import KIND, Quantize
from limbeck.quantization.replacement import float_weight_of, quantized
from limbeck.quantization.specification import Specification
from limbeck.search.allocate import METHODS, Allocation, Option, allocate, allocate_by_evolution
from limbeck.search.sensitivity import output_divergence, output_noise, weight_traces

SENSITIVITIES = ("kl", "hessian", "noise")
SOLVERS = (*METHODS, "evolution")


@dataclass(frozen=True)
class MixedPrecision:
    """`Quantize` with bits of its own for every layer: those of least total loss within a budget.

        min sum_i loss_i(b_i)    subject to    sum_i bytes_i(b_i) <= bytes,  or  sum_i n_i b_i <= average_bits sum_i n_i

    bits            widths to choose from, 1 (the grid "binary") to 8, and 32 to keep a layer in float
    average_bits    mean bits per weight of the layers together; or
    bytes           stored bytes of those layers with scales and biases, as a number or "120 kB"; exactly one of the two
    sensitivity     loss of a layer at b bits, everything else in float:
                    "kl"       KL of the model's answers (`output_divergence`), no labels needed
                    "hessian"  mean Hessian trace of the layer x |W - Q(W)|^2 (HAWQ-V2), from the task's loss
                    "noise"    of the layer's own output relative to its energy; linear layers only
    solver          "milp", "dynamic", or "evolution", which takes the KL of the whole quantized model as the loss, `evaluations` times
    quantize        everything but the bits: granularity, activations, `only`, `ignore`, rounding (bits are chosen with rounding to the
                    nearest, whatever it says) ...
    examples, batch_size, samples, seed   of the measurement: examples of the train split; draws of Hutchinson's estimator

    Sources: Cai et al., "ZeroQ", CVPR 2020, section 3.2; Dong et al., "HAWQ-V2", NeurIPS 2020. Raises BudgetError where the fewest bits
    do not keep to the budget.
    """

    bits: tuple[int, ...] = (2, 4, 8)
    average_bits: float | None = None
    bytes: float | str | None = None
    sensitivity: str = "kl"
    solver: str = "milp"
    quantize: Quantize = field(default_factory=lambda: Quantize(activations=None))
    examples: int = 128
    batch_size: int = 32
    samples: int = 32
    evaluations: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "bits", tuple(sorted(set(self.bits))) if not isinstance(self.bits, int) else (self.bits,)
        )
        if not isinstance(self.quantize, Quantize):
            raise UsageError(f"MixedPrecision: quantize={self.quantize!r}: give a Quantize, its bits are not used")
        if not self.bits:
            raise UsageError("MixedPrecision: bits is empty: name the widths to choose from")
        for width in self.bits:
            of_width(self.quantize, width)
        if (self.average_bits is None) == (self.bytes is None):
            raise UsageError("MixedPrecision: give average_bits or bytes, one of the two")
        if self.average_bits is not None and not 0 < self.average_bits <= IDENTITY_BITS:
            raise UsageError(f"MixedPrecision: average_bits={self.average_bits!r} must be above 0 and at most 32")
        Budget(bytes=self.bytes)
        for name, allowed in (("sensitivity", SENSITIVITIES), ("solver", SOLVERS)):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"MixedPrecision: {name}={getattr(self, name)!r}: allowed are {', '.join(map(repr, allowed))}"
                )
        for name in ("examples", "batch_size", "samples", "evaluations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"MixedPrecision: {name}={value!r} must be a whole number of at least 1")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Measure every layer at every width and choose; the model stays as it is."""
        if task is None:
            raise UsageError("MixedPrecision measures layers on a task's train split and no task was given: pass one")
        widths = [width for width in self.bits if width != IDENTITY_BITS]
        if not widths:
            return Quantize(bits=IDENTITY_BITS).plan(model)
        plan = dataclasses.replace(of_width(self.quantize, widths[0]), rounding="nearest").plan(model, task)
        choices = {
            path: {width: at_width(self.quantize, entry, width) for width in widths}
            for path, entry in plan.decisions["modules"].items()
        }
        found = self.choose(model, task, choices)
        note = {"cost": found.cost, "loss": found.loss}
        return with_bits(self.quantize, model, task, plan, found.choice, allocation=note)

    def choose(self, model: nn.Module, task: Any, choices: Mapping[str, Mapping[int, Any]]) -> Allocation:
        """The width of every layer, from {path: {width: entry of a plan}}."""
        rounded, cost = {}, {}
        numbers = {path: model.get_submodule(path).weight.numel() for path in choices}
        with torch.no_grad():
            for path, entries in choices.items():
                module = model.get_submodule(path)
                for width, entry in entries.items():
                    made = quantized(module, Specification.from_json(entry))
                    rounded[path, width] = float_weight_of(module, made.weight).to(module.weight.dtype)
                    cost[path, width] = made.nbytes if self.bytes is not None else made.weight.numel() * width / 8
                if IDENTITY_BITS in self.bits:
                    own = sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
                    cost[path, IDENTITY_BITS] = own if self.bytes is not None else 4 * numbers[path]
        allowed = (
            self.average_bits * sum(numbers.values()) / 8 if self.bytes is None else Budget(bytes=self.bytes).bytes
        )
        with evaluating(model):
            batches = list(task.batches("train", self.batch_size, limit=self.examples))
            loss = self._losses(model, task, batches, rounded)
            items = {
                path: [Option(width, cost[path, width], loss.get((path, width), 0.0)) for width in self.bits]
                for path in choices
            }
            if self.solver != "evolution":
                return allocate(items, allowed, self.solver)

            def whole(choice: Mapping[str, int]) -> float:
                changed = {p: rounded[p, width] for p, width in choice.items() if width != IDENTITY_BITS}
                return output_divergence(model, batches, {0: lambda: changed})[0]

            sizes = {"evaluations": self.evaluations, "population": min(20, self.evaluations)}
            return allocate_by_evolution(
                items, allowed, whole, **sizes, tournament=min(5, self.evaluations), seed=self.seed
            )

    def _losses(
        self, model: nn.Module, task: Any, batches: list[Any], rounded: Mapping[tuple[str, int], Tensor]
    ) -> dict[tuple[str, int], float]:
        if self.sensitivity == "kl":
            changes = {key: lambda key=key: {key[0]: rounded[key]} for key in rounded}
            return output_divergence(model, batches, changes)
        paths = list(dict.fromkeys(path for path, _ in rounded))
        own = {path: model.get_submodule(path).weight.detach() for path in paths}
        if self.sensitivity == "hessian":
            traces = weight_traces(model, task.loss, batches, paths, self.samples, self.seed)
            return {
                (path, width): max(traces[path], 0.0)
                / own[path].numel()
                * float((value - own[path]).double().square().sum())
                for (path, width), value in rounded.items()
            }
        convolutions = [path for path in paths if own[path].dim() > 2]
        if convolutions:
            raise UsageError(f"MixedPrecision: sensitivity='noise' knows linear layers only, not {convolutions[0]!r}")
        seen = channel_statistics(model, task, paths, self.examples, self.batch_size, gram=True)
        found = {}
        for (path, width), value in rounded.items():
            weight, change = (float_weight_of(model.get_submodule(path), w) for w in (own[path], value - own[path]))
            found[path, width] = output_noise(change, weight, seen[path].gram) if path in seen else 0.0
        return found


def at_width(quantize: Quantize, entry: Mapping[str, Any], width: int) -> dict[str, Any]:
    """An entry of a quantization plan with weights of another width."""
    return {**entry, "weight": of_width(quantize, width).specification.to_json()["weight"]}


def of_width(quantize: Quantize, width: int) -> Quantize:
    """The same with weights of another width; one bit is the grid "binary"."""
    if width != 1:
        return dataclasses.replace(quantize, bits=width)
    return dataclasses.replace(quantize, bits=type(quantize).bits, grid="binary", symmetric=None, method=None)


def with_bits(
    quantize: Quantize, model: nn.Module, task: Any, plan: Plan, bits: Mapping[str, int], **more: Any
) -> Plan:
    """A plan with the widths of `bits` by path (32: the layer stays in float), rounded as `quantize` says. more: decisions to record."""
    entries = plan.decisions["modules"]
    modules = {path: at_width(quantize, entries[path], width) for path, width in bits.items() if width != IDENTITY_BITS}
    quantizers = {path: Specification.from_json(entry).quantizer for path, entry in modules.items()}
    left = {path: "the allocation keeps it in float" for path in entries if path not in modules}
    changed = {"modules": modules, "left_alone": {**plan.decisions["left_alone"], **left}, **more}
    return Plan(KIND, {**plan.decisions, **quantize.rounded(model, task, quantizers), **changed})
