"""Scorers: how much each item (a channel, a neuron, a head, a layer's weight) matters. Higher is kept.

A Scorer is a frozen dataclass with `needs` (what must be measured on data: "gradients", "inputs" or nothing) and
`score(context) -> (items,)`. The Context holds, per tensor that an item touches, a matrix with one row per item, so the same
scorer ranks channels, heads and single weights. Data come from the task's train split, never from validation or test.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.signals import Tap, call, first_tensor, to_device


@dataclass(frozen=True)
class Context:
    """What a scorer may look at for one group of `items` that are kept or dropped on their own.

    weights: one (items, elements) per tensor that loses a row with the item; gradients: |w g| of the same shapes, the mean over
    calibration batches; inputs: the root mean square of the input feature that each element multiplies, None for tensors
    that multiply no input (biases, producers); scales: the (items,) factors of the group's batch normalizations.
    """

    items: int
    weights: Sequence[Tensor]
    saliences: Sequence[Tensor] | None = None
    inputs: Sequence[Tensor | None] | None = None
    scales: Sequence[Tensor] = ()
    name: str = ""


class Scorer(Protocol):
    """`comparable` says that scores of different groups share a unit, so that a global ranking needs no normalization."""

    needs: frozenset[str]
    comparable: bool

    def score(self, context: Context) -> Tensor: ...


@dataclass(frozen=True)
class Magnitude:
    """The norm of everything an item owns:  s_i = (sum |w|^p)^(1/p) over the item's elements in all tensors of its group.

    p is 1 or 2. Needs no data. Scores are normalized per group for a global ranking (groups own different numbers of elements).
    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (p = 1, filters only; here the reading side counts too).
    """

    p: int = 1
    needs = frozenset()
    comparable = False

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise UsageError(f"Magnitude: p must be 1 or 2, not {self.p!r}")

    def score(self, context: Context) -> Tensor:
        total = sum(w.float().abs().pow(self.p).sum(1) for w in context.weights)
        return total if self.p == 1 else total.sqrt()


@dataclass(frozen=True)
class Taylor:
    """First-order change of the loss when an item is zeroed:  s_i = mean over batches of  sum |w dL/dw|  over what it owns.

    The loss is the task's, on `batches` batches of `batch_size` examples of the train split, without augmentation. All scores
    are in units of the loss, so a global ranking compares them as they are.
    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8. Deviation: the absolute
    value is taken per weight and not of the item's sum (as in LLM-Pruner, NeurIPS 2023), so that opposite signs do not cancel.
    """

    batches: int = 8
    batch_size: int = 32
    seed: int = 0
    needs = frozenset({"gradients"})
    comparable = True

    def __post_init__(self) -> None:
        _check_calibration(self)

    def score(self, context: Context) -> Tensor:
        return sum(s.float().sum(1) for s in context.saliences)


@dataclass(frozen=True)
class BatchNormScale:
    """|gamma| of the batch normalizations that scale an item, summed:  s_i = sum |gamma_i|.  Needs no data.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. A group without
    batch normalization (linear neurons, heads) is refused with its name.
    """

    needs = frozenset()
    comparable = False

    def score(self, context: Context) -> Tensor:
        if not context.scales:
            raise UsageError(
                f"BatchNormScale: {context.name!r} has no batch normalization to read a scale from. Use Magnitude or "
                "Taylor, or name that module in `ignore`"
            )
        return sum(scale.float().abs() for scale in context.scales)


@dataclass(frozen=True)
class ActivationNorm:
    """Weights times the size of what they read:  s_i = sum |w| rms(x)  over the weights that read item i.

    For single weights this is Wanda's |w_ij| ||x_j||; for channels, neurons and heads the sum over their readers.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, eq. 1.
    """

    batches: int = 8
    batch_size: int = 32
    seed: int = 0
    needs = frozenset({"inputs"})
    comparable = False

    def __post_init__(self) -> None:
        _check_calibration(self)

    def score(self, context: Context) -> Tensor:
        terms = [(w.float().abs() * x.float()).sum(1) for w, x in zip(context.weights, context.inputs) if x is not None]
        if not terms:
            raise UsageError(f"ActivationNorm: nothing that reads {context.name!r} was called on the calibration data")
        return sum(terms)


@dataclass(frozen=True)
class Random:
    """Uniform scores drawn from (seed, group name): the control that any other scorer must beat."""

    seed: int = 0
    needs = frozenset()
    comparable = True

    def score(self, context: Context) -> Tensor:
        import zlib

        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + zlib.crc32(context.name.encode()))
        return torch.rand(context.items, generator=generator)


def _check_calibration(scorer: Any) -> None:
    for name in ("batches", "batch_size"):
        value = getattr(scorer, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{type(scorer).__name__}: {name} must be a whole number of at least 1, not {value!r}")


@dataclass(frozen=True)
class Statistics:
    """What calibration measured: `saliences` |w g| by parameter name, `inputs` rms (features,) by module path."""

    saliences: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)


def calibration_batches(model: nn.Module, task: Any, settings: Any) -> list[dict[str, Any]]:
    """`settings.batches` batches of the train split, on the model's device. Raises UsageError without a task or data."""
    who = type(settings).__name__
    if task is None:
        raise UsageError(f"{who} is measured on data: pass the task, or choose Magnitude, which needs none")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    stream = task.batches("train", settings.batch_size, seed=settings.seed)
    found = [to_device(batch, device) for batch in itertools.islice(stream, settings.batches)]
    if not found:
        raise UsageError(f"{who}: the train split of the task yielded no batch to calibrate on")
    return found


def measure(model: nn.Module, task: Any, scorer: Any, readers: Sequence[str] = ()) -> Statistics:
    """Run what a scorer needs, in eval mode, and leave the model as it was found. `readers`: paths whose input rms is measured."""
    if not scorer.needs:
        return Statistics()
    batches = calibration_batches(model, task, scorer)
    with unchanged(model):
        if "gradients" in scorer.needs:
            return Statistics(saliences=_saliences(model, task, batches))
        return Statistics(inputs={path: m.sqrt() for path, m in second_moments(model, batches, readers).items()})


def _saliences(model: nn.Module, task: Any, batches: Sequence[Any]) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    for parameter in named.values():
        parameter.requires_grad_(True)
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    for batch in batches:
        loss = task.loss(first_tensor(call(model, batch)), batch)
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), gradients):
            if gradient is not None:
                total[name] += (parameter.detach().float() * gradient.float()).abs() / len(batches)
    return total


def second_moments(model: nn.Module, batches: Sequence[Any], paths: Sequence[str]) -> dict[str, Tensor]:
    """E[x_j^2] of every input feature (channel) of the named modules, over batches, positions and pixels. (features,) each.

    Padded positions (attention_mask 0) do not count where the input has the mask's shape.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    modules = dict(model.named_modules())
    with torch.no_grad(), Tap(model, {f"{path}:input" for path in paths}) as tap:
        for batch in batches:
            for key, x in tap(batch).items():
                path = key.removesuffix(":input")
                rows = input_rows(modules[path], x, batch)
                sums[path] = sums.get(path, 0) + rows.pow(2).sum(0)
                counts[path] = counts.get(path, 0) + len(rows)
    return {path: sums[path] / max(counts[path], 1) for path in sums}


def input_rows(module: nn.Module, x: Tensor, batch: Any) -> Tensor:
    """An input as (positions, features) in float32: features are the last axis, or axis 1 of a convolution's input."""
    if isinstance(module, nn.modules.conv._ConvNd):
        x = x.movedim(1, -1)
    mask = batch.get("attention_mask")
    if mask is not None and x.dim() == 3 and mask.shape == x.shape[:2]:
        return x[mask.bool()].float()
    return x.reshape(-1, x.shape[-1]).float()


class unchanged:
    """Eval mode inside the block; the mode of every module, requires_grad and .grad are put back on leaving."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> nn.Module:
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.parameters = [(p, p.requires_grad) for p in self.model.parameters()]
        return self.model.eval()

    def __exit__(self, *_: Any) -> None:
        for module, mode in self.modes:
            module.training = mode
        for parameter, wanted in self.parameters:
            parameter.requires_grad_(wanted)
