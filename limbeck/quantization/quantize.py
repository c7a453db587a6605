"""Quantize: post-training quantization of Linear and Conv2d, and the replay of its plan.

A plan's decisions:

    {"modules": {path: {"type": "Linear" | "Conv2d" | "Conv1D" | "Embedding", "weight": ..., "input": ..., "compute": ...}},   see specification.py
     "outputs": {path: {"bits", "scale", "zero_point"}},    activation ranges that an export needs and torch does not apply
     "left_alone": {path: reason},                          modules with weights that stay as they are
     "calibration": {...},                                  with static ranges: the settings they were calibrated with
     "rounding": {...},                                     the way of rounding, where it is not to the nearest
     "data": {"weights": {path: {"codes", "scale", ...}},   what it found, see rounding.py,
              "parameters": {name: values}}}                and new values of other parameters, where it tuned some
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck import tensors
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.quantization.calibration import check_method
from limbeck.quantization.contract import Grid
from limbeck.quantization.granularity import Granularity
from limbeck.quantization.grids import IDENTITY_BITS, IntegerGrid, PerChannel, PerGroup, PerRows, PerTensor, Quantizer
from limbeck.quantization.named_grids import named, open_width
from limbeck.quantization.ranges import activation_ranges, output_paths
from limbeck.quantization.replacement import float_weight_of, quantized, replace, why_not, why_not_table
from limbeck.quantization.rounding import as_rounding, from_text, round_weights, to_text
from limbeck.quantization.specification import DYNAMIC, DynamicRange, Specification
from limbeck.signals import match_paths
from limbeck.vocabulary import describe

KIND = "quantize"


@dataclass(frozen=True)
class Quantize:
    """Post-training quantization to integer weights, or weights on another grid, and, where asked for, integer activations.

    bits, weights   weight bits 2..8 (32: change nothing) with one scale per "channel", per "tensor", per group of that many inputs, or
                    per run of so many output channels: "16 rows"
    grid            another grid by name: "nf4", "fp8_e4m3", "ternary", "binary", "kmeans", "e8", ... (`named_grids.NAMES`), or its name and
                    settings: {"name": "power", "exponent": 0.4}. `bits` counts where the name leaves the width open; None: integers
    activations     "static": asymmetric uint8 ranges calibrated on the train split (a task is needed);
                    "dynamic": symmetric integers per token (Linear) or sample (Conv2d), their scale found at run time; None: weight-only
    symmetric       weights around 0; None: yes with 8 bits or integer activations, no below 8 bits weight-only
    method          how weight scales are found: of integers "minmax" or "mse" (`grids.mse_range`), of others what the grid says; None: "minmax",
                    or the grid's first
    calibration     activation ranges: "minmax", "percentile" (of `percentile`) or "mse", on `examples` training examples
    rounding        how weights are put on the grid: "nearest", "gptq", "adaround", "reconstruction", "hqq", "decoupleq", "vector_feedback", or an
                    object such as GPTQ(damping=0.05); those that read data take the same `examples` as the ranges, and float activations
    scale_type      how weight scales are stored; None: float32, and bfloat16 for groups
    compute         type of weight-only products: "float32", or "bfloat16" (fast int4 and int8 kernels at few rows)
    only, ignore    patterns of module paths

    Modules that are not exactly Linear, Conv2d (or the transposed Conv1D of transformers), tied weights and modules that
    calibration never reached are left alone and listed with the reason in plan.decisions["left_alone"].
    Source of the scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018. Raises UsageError for settings that cannot be right and when nothing would be quantized.
    """

    bits: int = 8
    weights: str | int = "channel"
    activations: str | None = "static"
    activation_bits: int = 8
    symmetric: bool | None = None
    method: str | None = None
    rounding: Any = "nearest"
    calibration: str = "mse"
    percentile: float = 99.99
    examples: int = 256
    batch_size: int = 32
    scale_type: str | None = None
    compute: str = "float32"
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    grid: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("only", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if self.activations not in ("static", DYNAMIC, None):
            raise UsageError(
                f"activations={self.activations!r}: allowed are 'static', 'dynamic' and None (weight-only)"
            )
        if self.compute not in ("float32", "bfloat16"):
            raise UsageError(f"compute={self.compute!r}: allowed are 'float32' and 'bfloat16'")
        if self.activations is not None and self.compute != "float32":
            raise UsageError("compute is for weight-only products (activations: null); integer products have their own")
        if self.activations is not None and self.symmetric is False:
            raise UsageError(
                "asymmetric weights are for weight-only quantization; drop symmetric or set activations: null"
            )
        for name in ("examples", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)!r}: must be a whole number of at least 1")
        if self.activation_bits == IDENTITY_BITS:
            raise UsageError("activation_bits=32: allowed are 2 to 8; float activations are activations: null")
        IntegerGrid(self.activation_bits)
        check_method(self.calibration, self.percentile)
        _ = self.specification.quantizer
        as_rounding(self.rounding)

    @property
    def specification(self) -> Specification:
        """The entry every module gets, before its activation range is known."""
        if isinstance(self.weights, int) and not isinstance(self.weights, bool):
            granularity: Granularity = PerGroup(self.weights)
        elif isinstance(self.weights, str) and (run := re.fullmatch(r"(\d+) rows", self.weights)):
            granularity = PerRows(int(run[1]))
        elif self.weights in ("channel", "tensor"):
            granularity = PerChannel(0) if self.weights == "channel" else PerTensor()
        else:
            raise UsageError(
                f"weights={self.weights!r}: allowed are 'channel', 'tensor', a group size such as 64 and a run such as '16 rows'"
            )
        grid = self._grid
        symmetric = self.symmetric if grid is None else True
        if symmetric is None:
            symmetric = self.bits >= 8 or self.activations is not None
        scale_type = self.scale_type or ("bfloat16" if isinstance(granularity, PerGroup) else "float32")
        dynamic = DynamicRange(self.activation_bits) if self.activations == DYNAMIC else None
        method = self.method or (grid.methods[0] if grid is not None else "minmax")
        bits = self.bits if grid is None else grid.bits
        return Specification(
            bits, symmetric, granularity, scale_type, method, input=dynamic, compute=self.compute, grid=grid
        )

    @property
    def _grid(self) -> Grid | None:
        if self.grid is None:
            return None
        if self.symmetric is False:
            raise UsageError(
                f"symmetric=False is a setting of integer weights; the grid {self.grid!r} has its own values"
            )
        if self.bits == IDENTITY_BITS:
            raise UsageError(f"bits=32 changes nothing, and the grid {self.grid!r} would: give one of them")
        grid = named(self.grid, None if self.bits == type(self).bits and not open_width(self.grid) else self.bits)
        return None if isinstance(grid, IntegerGrid) else grid

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide; static activations read `examples` examples of the task's train split."""
        if self.bits == IDENTITY_BITS:
            return Plan(KIND, {"modules": {}, "outputs": {}, "left_alone": {}})
        plan = self.plan_modules(model)
        modules, left = plan.decisions["modules"], plan.decisions["left_alone"]
        if self.activations == "static":
            if task is None:
                raise UsageError(
                    "static activation ranges are calibrated on a task's train split and no task was given: pass one, "
                    "or choose activations: dynamic or null"
                )
            plan.decisions["outputs"], ranges = self._ranges(
                model, task, {path: e["type"] for path, e in modules.items()}
            )
            for path in [path for path in modules if path not in ranges]:
                left[path] = "calibration never reached it"
                del modules[path]
            if not modules:
                raise UsageError(f"nothing in {type(model).__name__} was reached by calibration")
            for path, entry in modules.items():
                entry["input"] = ranges[path]
            plan.decisions["calibration"] = self._calibration
        plan.decisions.update(self.rounded(model, task, dict.fromkeys(modules, self.specification.quantizer)))
        return plan

    def plan_modules(self, model: nn.Module) -> Plan:
        """The part of the plan that needs neither data nor weights: which modules, and how. For models without data in their parameters."""
        chosen, left = self._found(model)
        entry = self.specification.to_json()
        modules = {path: {"type": kind, **entry} for path, kind in chosen.items()}
        return Plan(KIND, {"modules": modules, "outputs": {}, "left_alone": left})

    def _found(self, model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
        """As `_choose`. Raises UsageError where it chooses nothing."""
        chosen, left = self._choose(model)
        if not chosen:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in list(left.items())[:5]) or "it has no weights"
            raise UsageError(f"nothing in {type(model).__name__} can be quantized ({reasons})")
        return chosen, left

    def rounded(self, model: nn.Module, task: Any, quantizers: Mapping[str, Quantizer]) -> dict[str, Any]:
        """What a plan says of weights that are rounded otherwise than to the nearest; quantizers by path."""
        if (rounding := as_rounding(self.rounding)) is None:
            return {}
        if rounding.reads_data and task is None:
            raise UsageError(f"{type(rounding).__name__} reads a task's train split and no task was given: pass one")
        batches = task.batches("train", self.batch_size, limit=self.examples) if rounding.reads_data else ()
        packed, tuned = round_weights(model, batches, quantizers, rounding)
        data: dict[str, Any] = {"weights": {path: to_text(packed.pop(path)) for path in quantizers}}
        if tuned:
            data["parameters"] = {name: tensors.to_text(value) for name, value in tuned.items()}
        return {"rounding": describe(rounding), "data": data}

    def _choose(self, model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
        def fits(module: nn.Module) -> str | None:
            return self.specification.fits(float_weight_of(module, module.weight).flatten(1).shape)

        return choose(model, self.only, self.ignore, why_not, fits)

    def _ranges(self, model: nn.Module, task: Any, chosen: Sequence[str]) -> tuple[dict, dict]:
        outputs = output_paths(model, chosen)
        values = activation_ranges(model, task, [f"{path}:input" for path in chosen] + outputs, self._calibration)
        ranges = {path: values[f"{path}:input"] for path in chosen if f"{path}:input" in values}
        return {path: values[path] for path in outputs if path in values}, ranges

    @property
    def _calibration(self) -> dict[str, Any]:
        names = ("calibration", "percentile", "examples", "batch_size", "activation_bits")
        return {name: getattr(self, name) for name in names}


def choose(
    model: nn.Module,
    only: Sequence[str],
    ignore: Sequence[str],
    why_not: Callable[[nn.Module], str | None],
    fits: Callable[[nn.Module], str | None],
) -> tuple[dict[str, str], dict[str, str]]:
    """(path -> class name of what is quantized, path -> why it is left alone) of all modules with parameters of their own.

    only, ignore: patterns of paths. why_not, fits: why a module, or its weight, cannot be, or None. Tied weights are left alone.
    Raises UsageError for a model that is one bare module.
    """
    if not any(path for path, _ in model.named_modules()):
        raise UsageError(f"a bare {type(model).__name__} cannot be replaced inside itself: wrap it in nn.Sequential")
    wanted = {path for pattern in only for path in match_paths(model, pattern)}
    ignored = {path for pattern in ignore for path in match_paths(model, pattern)}
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    chosen, left = {}, {}
    for path, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        reason = why_not(module) if path else "it is the model itself"
        if reason is None:
            names = {name.rpartition(".")[0] for name in users[id(module.weight)]}
            tied = [name for name in names if id(model.get_submodule(name)) != id(module)]
            if tied:
                reason = f"its weight is tied to {sorted(tied)[0]}"
            elif path not in wanted:
                reason = "not asked for"
            elif any(path == other or path.startswith(other + ".") for other in ignored):
                reason = "ignored"
            else:
                reason = fits(module)
        if reason is None:
            chosen[path] = type(module).__name__
        else:
            left[path] = reason
    return chosen, left


def entries(
    model: nn.Module, plan: Plan, allowed: Sequence[str] = (), embeddings: bool = False
) -> list[tuple[str, nn.Module, Specification]]:
    """(path, float module, specification) of every module a plan names. allowed: further names of classes; embeddings: whether tables
    may be among them. Raises ArtifactError where the plan does not fit, UsageError for tables that may not."""
    found = []
    for path, entry in plan.decisions.get("modules", {}).items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ArtifactError(f"the quantization plan names {path!r}, which this model does not have") from error
        if type(module).__name__ not in (entry.get("type"), *allowed):
            raise ArtifactError(f"the quantization plan expects a {entry.get('type')} at {path!r}, not {module}")
        if isinstance(module, nn.Embedding) and not embeddings:
            raise UsageError(
                f"{path}: embeddings are rounded to the nearest; they are not trained on a grid, leave them out"
            )
        found.append((path, module, Specification.from_json(entry)))
    return found


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace every module the plan names by its quantized form. Scales and codes follow from the weights that are there, unless
    the plan has a way of rounding: then they are the plan's data, and without data (a lineage's plan) scales are NaN, so that a
    model whose weights are not loaded afterwards cannot pass for a rounded one."""
    rounded, data = "rounding" in plan.decisions, plan.decisions.get("data", {}).get("weights", {})
    for path, module, specification in entries(model, plan, embeddings=True):
        reason = (why_not_table if isinstance(module, nn.Embedding) else why_not)(module)
        if reason is not None:
            raise ArtifactError(f"the module at {path!r} cannot be quantized: {reason}")
        packed = None
        if path in data:
            shape = float_weight_of(module, module.weight).flatten(1).shape
            packed = from_text(data[path], tuple(shape), specification.quantizer, path)
        elif data:
            raise ArtifactError(f"the quantization plan's data lack {path!r}")
        made = quantized(module, specification, packed)
        if rounded and packed is None:
            for name, value in made._buffers.items():
                if name.startswith("weight_") and value.is_floating_point():
                    value.fill_(torch.nan)
        replace(model, path, made)
    for name, text in plan.decisions.get("data", {}).get("parameters", {}).items():
        try:
            parameter = model.get_parameter(name)
        except AttributeError as error:
            raise ArtifactError(f"the quantization plan tunes {name!r}, which this model does not have") from error
        with torch.no_grad():
            parameter.copy_(tensors.from_text(text, parameter.shape, f"the parameter {name!r} in the plan"))
    return model
