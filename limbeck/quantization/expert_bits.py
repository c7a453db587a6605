"""Bits expert by expert: a whole-number program over what each expert of a mixture would lose, and how much it is used.

    min sum_i,b f_i^a w_i^c e_ib^g x_ib     one width b per expert, the mean width within the budget, of some widths a least number

    f_i    how often expert i is chosen              w_i    the routing probability that it gets       both sum to 1 over a mixture
    e_ib   sum over calibration batches of |change of the mixture's output|_F when expert i alone is rounded to b bits

Source: Huang et al., "MC-MoE: Mixture Compressor for Mixture-of-Experts LLMs Gains More", ICLR 2025, section 3.2 (a = 1, c = 1.5, g = 2, at
least one expert of 3 and one of 2 bits). The authors' code was read: there e is raised to a, which is 1, and g is never used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.models.mixture_of_experts import MixtureOfExperts
from limbeck.plan import Plan
from limbeck.pruning.importance import input_rows
from limbeck.quantization.calibration import evaluating
from limbeck.quantization.hessian import matrix, write_matrix
from limbeck.quantization.mixed_precision import of_width, with_bits
from limbeck.quantization.quantize import Quantize
from limbeck.search.allocate import Option, allocate
from limbeck.signals import Tap, call, to_device

Choice = dict[str, dict[int, int]]  # path of a mixture -> bits of each expert


@dataclass(frozen=True)
class Use:
    """What one mixture's experts were seen to do: frequency and routing (experts,), each of sum 1; error: {bits: (experts,)}."""

    frequency: Tensor
    routing: Tensor
    error: Mapping[int, Tensor]


@dataclass(frozen=True)
class ExpertBits:
    """`Quantize` with a width of its own for every expert of every `MixtureOfExperts`, and `others` bits for all other layers.

    bits            widths to choose from, 1 to 8; one bit is the grid "binary"
    average_bits    the mean over the experts of a mixture, at most
    at_least        {bits: how many experts of each mixture have that width at least}
    frequency, routing, error    the exponents a, c and g
    own_errors      False: e_b is the mean over experts, so that only use tells them apart
    quantize        everything but the bits; errors are measured with rounding to the nearest, whatever it says
    examples, batch_size    of the train split

    Raises UsageError for settings that cannot be right and for a model without a mixture, BudgetError where no choice keeps to them.
    """

    bits: tuple[int, ...] = (1, 2, 3)
    average_bits: float = 2.5
    others: int = 4
    at_least: dict[int, int] = field(default_factory=lambda: {2: 1, 3: 1})
    frequency: float = 1.0
    routing: float = 1.5
    error: float = 2.0
    own_errors: bool = True
    quantize: Quantize = field(default_factory=lambda: Quantize(weights=128, activations=None, rounding="gptq"))
    examples: int = 128
    batch_size: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", tuple(sorted(set(self.bits))))
        object.__setattr__(self, "at_least", {int(width): count for width, count in self.at_least.items()})
        if not isinstance(self.quantize, Quantize):
            raise UsageError(f"ExpertBits: quantize={self.quantize!r}: give a Quantize, its bits are not used")
        if not self.bits or set(self.at_least) - set(self.bits):
            raise UsageError(f"ExpertBits: bits={self.bits!r}, at_least={self.at_least!r}: widths to choose from")
        for width in (*self.bits, self.others):
            of_width(self.quantize, width)
        if not self.bits[0] <= self.average_bits <= self.bits[-1]:
            raise UsageError(f"ExpertBits: average_bits={self.average_bits!r} must lie within {self.bits!r}")
        for name in ("frequency", "routing", "error"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"ExpertBits: {name}={getattr(self, name)!r}: an exponent is at least 0")
        for name in ("examples", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"ExpertBits: {name}={value!r} must be a whole number of at least 1")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Measure every expert at every width and choose; the model stays as it is."""
        return self.plan_of(model, task, self.choose(model, task))

    def plan_of(self, model: nn.Module, task: Any, choice: Choice) -> Plan:
        """The plan for widths that were chosen already."""
        base = dataclasses.replace(of_width(self.quantize, self.others), rounding="nearest").plan(model, task)
        bits = dict.fromkeys(base.decisions["modules"], self.others)
        for owner, experts in choice.items():
            for index, width in experts.items():
                inside = f"{owner}.experts.{index}."
                bits |= {path: width for path in bits if path.startswith(inside)}
        shown = {owner: [experts[index] for index in sorted(experts)] for owner, experts in choice.items()}
        return with_bits(self.quantize, model, task, base, bits, experts=shown)

    def choose(self, model: nn.Module, task: Any) -> Choice:
        """The width of every expert."""
        found: Choice = {}
        for path, use in self.measure(model, task).items():
            count, losses = len(use.frequency), self.losses(use)
            items = {str(i): [Option(w, w, float(losses[w][i])) for w in self.bits] for i in range(count)}
            picked = allocate(items, self.average_bits * count, at_least=self.at_least)
            found[path] = {int(name): width for name, width in picked.choice.items()}
        return found

    def losses(self, use: Use) -> dict[int, Tensor]:
        """What the program sums up: f^a w^c e^g of every expert (experts,), by bits."""
        used = use.frequency**self.frequency * use.routing**self.routing
        errors = {w: e if self.own_errors else e.mean().expand(len(e)) for w, e in use.error.items()}
        return {width: used * error**self.error for width, error in errors.items()}

    @torch.no_grad()
    def measure(self, model: nn.Module, task: Any) -> dict[str, Use]:
        """f, w and e of every mixture, by path."""
        mixtures = {path: module for path, module in model.named_modules() if isinstance(module, MixtureOfExperts)}
        if not mixtures:
            raise UsageError(f"ExpertBits: {type(model).__name__} has no limbeck MixtureOfExperts")
        if task is None:
            raise UsageError("ExpertBits measures experts on a task's train split and no task was given: pass one")
        rounded = {path: {width: self._rounded(m, width) for width in self.bits} for path, m in mixtures.items()}
        zeros = {path: torch.zeros(len(m.experts), dtype=torch.float64) for path, m in mixtures.items()}
        counts, weights = ({path: zero.clone() for path, zero in zeros.items()} for _ in range(2))
        errors = {path: {width: zero.clone() for width in self.bits} for path, zero in zeros.items()}

        def see(path: str, x: Tensor) -> None:
            mixture = mixtures[path]
            weight, chosen = mixture.choose(x)
            probability = mixture.router(x).float().softmax(-1).gather(-1, chosen)
            counts[path] += torch.bincount(chosen.flatten(), minlength=len(mixture.experts)).cpu()
            weights[path].index_add_(0, chosen.flatten().cpu(), probability.flatten().double().cpu())
            for index, expert in enumerate(mixture.experts):
                row, place = (chosen == index).nonzero(as_tuple=True)
                usual, share = expert(x[row]), weight[row, place, None]
                for width in self.bits:
                    change = share * (rounded[path][width][index](x[row]) - usual)
                    errors[path][width][index] += float(change.double().norm())

        seen = False
        with evaluating(model) as device:
            for given in task.batches("train", self.batch_size, limit=self.examples):
                batch, inputs = to_device(given, device), []
                with Tap(model, [f"{path}:input" for path in mixtures], lambda *pair, kept=inputs: kept.append(pair)):
                    call(model, batch)
                for name, value in inputs:
                    see(name.removesuffix(":input"), input_rows(model, value, batch))
                    seen = True
        if not seen:
            raise DataError("the train split gave no batch to measure the experts on")
        return {
            path: Use(counts[path] / counts[path].sum(), weights[path] / weights[path].sum(), errors[path])
            for path in mixtures
        }

    def _rounded(self, mixture: MixtureOfExperts, width: int) -> nn.ModuleList:
        """The experts with their linear layers rounded to the nearest."""
        quantizer = of_width(self.quantize, width).specification.quantizer
        made = copy.deepcopy(mixture.experts)
        for module in made.modules():
            if isinstance(module, nn.Linear):
                write_matrix(module, quantizer.decode(quantizer.encode(matrix(module))))
        return made
