"""AWQ: scale up the weights that read large activations before they are rounded, and clip what is not worth its range."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.pruning.slicing import is_conv1d
from limbeck.quantization.equivalence.folds import Fold, columns, rescale_plan
from limbeck.quantization.equivalence.layouts import layout
from limbeck.quantization.equivalence.smooth import check_counts, check_kinds, chosen, unread
from limbeck.quantization.equivalence.statistics import ChannelStatistics, channel_statistics
from limbeck.quantization.grids import PerChannel, PerGroup, Quantizer, dequantize, quantize
from limbeck.quantization.quantize import Quantize
from limbeck.tensors import from_text, to_text

CLIP = "clip_weights"


def on_grid(weight: Tensor, quantizer: Quantizer) -> Tensor:
    """A weight (out, in) onto its grid and back, float32."""
    scale, zero = quantizer.parameters(weight)
    return dequantize(
        quantize(weight, scale, zero, quantizer.grid, quantizer.granularity), scale, zero, quantizer.granularity
    )


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """sum over positions of |change x|^2 = tr(change G change^T), per output: change (out, in), gram (in, in) -> (out,)."""
    change = change.double()
    return ((change @ gram) * change).sum(1)


@dataclass(frozen=True)
class AWQ:
    """Activation-aware scales: W s is rounded in place of W, and what W reads is divided by s. What the model computes in float stays.

        s_j = mean|X_j|^a / sqrt(max * min),   a in {0, 1/grid, ..., 1} with the least  sum |Q(W s) (x / s) - W x|^2

    over the calibration inputs x and all layers W that read the same; a = 0 changes nothing. The error is computed from the inputs'
    second moments, exactly, so no inputs are kept.

    bits, weights, symmetric    the grid that `Quantize` will use afterwards
    grid                        how many steps of a are tried
    kinds                       folds of `layout`: "norm", "value", "factor", "relu", "final"
    examples, batch_size        calibration examples of the train split

    Source: Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration", MLSys 2024, eq. 4
    and 5, where s_X is the mean |x|. The authors' code divides s by sqrt(max * min), as here, stops at a = 0.95, and measures the
    error after the whole attention or feed-forward block; here it is that of the layers that read the channel.
    """

    bits: int = 4
    weights: str | int = 64
    symmetric: bool | None = None
    grid: int = 20
    kinds: tuple[str, ...] = ("norm", "value", "factor")
    examples: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", check_kinds("AWQ", self.kinds))
        check_counts("AWQ", grid=self.grid, examples=self.examples, batch_size=self.batch_size)
        _ = self.quantizer

    @property
    def quantizer(self) -> Quantizer:
        return weight_quantizer(self.bits, self.weights, self.symmetric)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Search the scales; the model stays as it is."""
        known = layout(model)
        folds = chosen(known, self.kinds)
        paths = [fold.readers[0] for fold in folds]
        found = channel_statistics(model, task, paths, self.examples, self.batch_size, gram=True)
        folds = [fold for fold in folds if fold.readers[0] in found]
        results = {fold.source: self.search(model, fold, found[fold.readers[0]]) for fold in folds}
        scales = {path: scale for path, (scale, _) in results.items()}
        exponents = {path: exponent for path, (_, exponent) in results.items()}
        return rescale_plan(folds, scales, exponents=exponents, left_alone=unread(known, folds))

    def search(self, model: nn.Module, fold: Fold, seen: ChannelStatistics) -> tuple[Tensor, float]:
        """The scale (channels,) of least output error of a fold's readers, and its exponent."""
        size = fold.to_source(seen.mean, largest=False).clamp_min(1e-8)
        weights = [columns(model.get_submodule(path)).detach().transpose(0, 1) for path in fold.readers]
        best, scale, exponent = torch.inf, torch.ones_like(size), 0.0
        for step in range(self.grid + 1):
            trial = size.pow(step / self.grid)
            trial = (trial / (trial.max() * trial.min()).sqrt()).clamp_min(1e-4)
            error = sum(self._error(weight, fold.to_readers(trial), seen) for weight in weights)
            if error < best:
                best, scale, exponent = error, trial, step / self.grid
        return scale, exponent

    def _error(self, weight: Tensor, scale: Tensor, seen: ChannelStatistics) -> float:
        if weight.dim() > 2:
            raise UsageError("AWQ searches scales for linear layers; for convolutions use Equalize or SmoothQuant")
        change = on_grid(weight.float() * scale.float(), self.quantizer).double() / scale - weight.double()
        return float(output_error(change, seen.gram).sum())


@dataclass(frozen=True)
class ClipWeights:
    """Clip each group of weights at the limit that gives the least output error once it is rounded.

        limit in {1, 1 - 1/steps, ...} x max|w|, down to `smallest`:   the least  sum over x of ((Q(clip(w)) - w) . x)^2

    per output and group of inputs. This changes what the model computes in float, a little; use it right before `Quantize` (and after
    `AWQ`), with the same bits, weights and symmetric.

    ignore: patterns of layers to leave; by default queries and keys, whose product makes errors of either larger.
    Source: Lin et al., AWQ, as in the authors' code (`auto_clip`, 20 steps of which 10 are used, queries and keys left out).
    """

    bits: int = 4
    weights: str | int = 64
    symmetric: bool | None = None
    steps: int = 20
    smallest: float = 0.5
    ignore: tuple[str, ...] = ("*q_proj", "*k_proj", "*query", "*key")
    examples: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "ignore", (self.ignore,) if isinstance(self.ignore, str) else tuple(self.ignore))
        check_counts("ClipWeights", steps=self.steps, examples=self.examples, batch_size=self.batch_size)
        if not 0 < self.smallest <= 1:
            raise UsageError(f"ClipWeights: smallest={self.smallest!r} must be above 0 and at most 1")
        _ = self.quantizer

    @property
    def quantizer(self) -> Quantizer:
        return weight_quantizer(self.bits, self.weights, self.symmetric)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Search the limits of every linear layer; the model stays as it is."""
        linear = [path for path, m in model.named_modules() if path and (type(m) is nn.Linear or is_conv1d(m))]
        chosen = [path for path in linear if not any(fnmatch.fnmatchcase(path, pattern) for pattern in self.ignore)]
        found = channel_statistics(model, task, chosen, self.examples, self.batch_size, gram=True)
        paths, data = {}, {}
        for path in found:
            limits = self.limits(columns(model.get_submodule(path)).detach().transpose(0, 1).float(), found[path].gram)
            paths[path] = list(limits.shape)
            data[path] = to_text(limits)
        return Plan(
            CLIP, {"paths": paths, "group": self._group, "left_alone": sorted(set(linear) - set(paths)), "data": data}
        )

    @property
    def _group(self) -> int | None:
        granularity = self.quantizer.granularity
        return granularity.size if isinstance(granularity, PerGroup) else None

    def limits(self, weight: Tensor, gram: Tensor) -> Tensor:
        """The limit of |w| per output and group: weight (out, in), gram (in, in) -> (out, groups)."""
        size = self._group or weight.shape[1]
        pieces = []
        for start in range(0, weight.shape[1], size):
            part = weight[:, start : start + size]
            inner = gram[start : start + size, start : start + size]
            whole = part.abs().amax(1)
            best, least = whole, torch.full_like(whole, torch.inf, dtype=torch.float64)
            for step in range(self.steps):
                limit = whole * (1 - step / self.steps)
                if 1 - step / self.steps < self.smallest - 1e-9:
                    break
                clipped = part.clamp(-limit[:, None], limit[:, None])
                error = output_error(on_grid(clipped, self._rowwise) - part, inner)
                best, least = torch.where(error < least, limit, best), torch.minimum(error, least)
            pieces.append(best)
        return torch.stack(pieces, 1)

    @property
    def _rowwise(self) -> Quantizer:
        full = self.quantizer
        return Quantizer(full.grid, PerChannel(0), full.method, full.scale_type)


def weight_quantizer(bits: int, weights: str | int, symmetric: bool | None) -> Quantizer:
    """The quantizer of a weight-only `Quantize` with these settings, one scale per channel or group. Raises UsageError for others."""
    if weights == "tensor" or bits == 32:
        raise UsageError(
            f"bits={bits}, weights={weights!r}: scales and limits are searched per channel or group, 2 to 8 bits"
        )
    return Quantize(bits=bits, weights=weights, activations=None, symmetric=symmetric).specification.quantizer


def apply_clip(model: nn.Module, plan: Plan) -> nn.Module:
    """Clip the weights a plan names. Without its data (an artifact's lineage) the weights are clipped already."""
    group = plan.decisions.get("group")
    for path, shape in plan.decisions.get("paths", {}).items():
        try:
            module = model.get_submodule(path)
            weight = columns(module)
        except AttributeError as error:
            raise ArtifactError(f"the plan clips {path!r}, which this {type(model).__name__} does not have") from error
        inputs, outputs = weight.shape
        if shape != [outputs, -(-inputs // (group or inputs))]:
            raise ArtifactError(f"the plan has limits of shape {shape} for {path!r}, a layer of {inputs} to {outputs}")
        text = plan.decisions.get("data", {}).get(path)
        if text is None or weight.is_meta:
            continue
        limits = from_text(text, shape, f"the limits of {path!r}").to(weight.device, weight.dtype).T
        limits = limits.repeat_interleave(group or inputs, 0)[:inputs]
        with torch.no_grad():
            weight.copy_(weight.clamp(-limits, limits))
    return model
