"""SmoothQuant: activations give part of their outliers to the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.quantization.equivalence.folds import KINDS, Fold, columns, rescale_plan, rows
from limbeck.quantization.equivalence.layouts import Layout, layout
from limbeck.quantization.equivalence.statistics import channel_statistics

SMALLEST = 1e-5


def smoothing_scale(activation: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^alpha / max|W_j|^(1 - alpha); both (channels,); a channel where either is 0 keeps its scale: 1."""
    scale = activation.double().pow(alpha) / weight.double().clamp_min(SMALLEST).pow(1 - alpha)
    return torch.where((activation > 0) & (weight > 0), scale.clamp_min(SMALLEST), torch.ones_like(scale))


def largest_weights(model: nn.Module, fold: Fold) -> Tensor:
    """max|W_j| over all rows of all readers, per channel of the source: (channels,)."""
    each = [columns(model.get_submodule(path)).detach().abs().flatten(1).amax(1) for path in fold.readers]
    return fold.to_source(torch.stack(each).amax(0))


@dataclass(frozen=True)
class SmoothQuant:
    """Divide the channels that linear layers read by s and multiply the weights' columns by it:

        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

    so that alpha = 1 leaves activations of equal range, alpha = 0 weights of equal columns; what the model computes stays as it is.
    1/s goes into the norm before (or, for other kinds, into the layer before). Use it before integer activations.

    alpha                   0 to 1
    kinds                   which folds of `layout`: "norm", "value", "factor", "relu", "final"
    examples, batch_size    calibration examples of the train split

    Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023, eq. 4;
    there for norms only. What no table knows is left alone and listed in plan.decisions["left_alone"].
    """

    alpha: float = 0.5
    kinds: tuple[str, ...] = ("norm",)
    examples: int = 128
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_unit("SmoothQuant", "alpha", self.alpha)
        object.__setattr__(self, "kinds", check_kinds("SmoothQuant", self.kinds))
        check_counts("SmoothQuant", examples=self.examples, batch_size=self.batch_size)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find the scales; the model stays as it is."""
        known = layout(model)
        folds = chosen(known, self.kinds)
        found = channel_statistics(model, task, [f.readers[0] for f in folds], self.examples, self.batch_size)
        folds = [fold for fold in folds if fold.readers[0] in found]
        scales = {
            fold.source: smoothing_scale(
                fold.to_source(found[fold.readers[0]].largest), largest_weights(model, fold), self.alpha
            )
            for fold in folds
        }
        return rescale_plan(folds, scales, left_alone=unread(known, folds))


@dataclass(frozen=True)
class Equalize:
    """Cross-layer equalization: give the channels between two layers the same range on both sides.

        s_c = sqrt(r1_c / r2_c),   r1: largest |weight| of the first layer's row c, r2: of the second one's column c

    The first layer's row is divided by s, the second one's column multiplied, until nothing changes by more than 1e-4 or
    `rounds` are over; nothing but a ReLU (or another function with f(c x) = c f(x), c > 0) lies between. Needs no data: for
    convolutional networks, after `FoldBatchNorm`, before one scale per tensor.

    kinds: as in `SmoothQuant`. Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
    eq. 11; without its bias absorption.
    """

    kinds: tuple[str, ...] = ("relu",)
    rounds: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", check_kinds("Equalize", self.kinds))
        check_counts("Equalize", rounds=self.rounds)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find the scales; the model stays as it is."""
        known = layout(model)
        folds = [fold for fold in chosen(known, self.kinds) if model.get_submodule(fold.source).weight.dim() > 1]
        scales = {fold.source: torch.ones(fold.channels, dtype=torch.float64) for fold in folds}
        for _ in range(self.rounds):
            moved = 0.0
            for fold in folds:
                first, second = self._ranges(model, fold, folds, scales)
                step = torch.where((first > 0) & (second > 0), (first / second).sqrt(), torch.ones_like(first))
                scales[fold.source] *= step
                moved = max(moved, float((step - 1).abs().max()))
            if moved < 1e-4:
                break
        return rescale_plan(folds, scales, left_alone=unread(known, folds))

    def _ranges(self, model, fold, folds, scales) -> tuple[Tensor, Tensor]:
        """Both sides' ranges with the scales so far, those of the neighbouring folds among them."""
        own = scales[fold.source]
        source, (reader,) = model.get_submodule(fold.source), fold.readers
        first = rows(source).detach().double()[fold.start : fold.start + fold.channels]
        for other in folds:  # the fold before has scaled the columns of this source
            if fold.source in other.readers:
                view = [1, -1, *[1] * (first.dim() - 2)]
                first = first * other.to_readers(scales[other.source]).view(view)
        second = columns(model.get_submodule(reader)).detach().double()
        for other in folds:  # the fold after has scaled the rows of this reader
            if other.source == reader and other.start == 0 and other.channels == second.shape[1]:
                second = second / scales[reader].view(1, -1, *[1] * (second.dim() - 2))
        return first.flatten(1).abs().amax(1) / own, fold.to_source(second.flatten(1).abs().amax(1)) * own


def chosen(known: Layout, kinds: tuple[str, ...]) -> list[Fold]:
    """The folds of these kinds."""
    return [fold for fold in known.folds if fold.kind in kinds]


def unread(known: Layout, folds: list[Fold]) -> dict[str, str]:
    """What no fold reaches: path -> reason."""
    done = {reader for fold in folds for reader in fold.readers}
    asked = {reader: "not asked for" for fold in known.folds for reader in fold.readers}
    return {path: reason for path, reason in {**asked, **known.left_alone}.items() if path not in done}


def check_kinds(owner: str, kinds: Any) -> tuple[str, ...]:
    """Kinds of folds as a tuple. Raises UsageError for a word that is none."""
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds or set(kinds) - set(KINDS):
        raise UsageError(f"{owner}: kinds={kinds!r}: name one or more of {', '.join(map(repr, KINDS))}")
    return kinds


def check_counts(owner: str, **counts: Any) -> None:
    """Raises UsageError, naming the field, for what is no whole number of at least 1."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{owner}: {name}={value!r} must be a whole number of at least 1")


def check_unit(owner: str, name: str, value: Any) -> None:
    """Raises UsageError for what is no number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(f"{owner}: {name}={value!r} must be a number from 0 to 1")
