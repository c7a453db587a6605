"""Objectives on where a layer is active: attention maps and the patterns of its channels. Widths may differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_positive, require_whole
from limbeck.objectives.layer_pair import LayerPair
from limbeck.signals import Signals


class _Patterns(LayerPair):
    """One layer of each model, as channels over positions; fields `student` and `teacher`."""

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = self.pair(student, teacher)
        if own.dim() == 2 or target.dim() == 2:
            raise UsageError(
                f"{self.name} compares maps (B, C, H, W) or sequences (B, L, D), which have places; the signals have the "
                f"shapes {tuple(own.shape)} and {tuple(target.shape)}"
            )
        own, target = self.matched(student, teacher, batch)
        places = own.shape[1:2] if own.dim() == 3 else own.shape[2:]
        weights = positions.weights(batch, (len(own), *places), labels=False)
        examples = batch.get("sample_weight")
        own, target = (channels_over_places(x, weights) for x in (own, target))
        with torch.autocast(own.device.type, enabled=False):
            loss = self.compare(own, target, None if weights is None else (weights != 0).flatten(1))
        return positions.mean(loss, None if examples is None else examples.float())

    def compare(self, own: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
        """The loss of each example: (B, C_s, P) and (B, C_t, P), zeros where a place does not count, counts (B, P), to (B,)."""
        raise NotImplementedError


def channels_over_places(feature: Tensor, weights: Tensor | None) -> Tensor:
    """A map (B, C, H, W) or a sequence (B, L, D) as (B, channels, places), zeros at the places that do not count."""
    if feature.dim() == 4:
        feature = feature.movedim(1, -1)
    blank = positions.precise(positions.blank(feature, weights))
    return blank.flatten(1, -2).transpose(1, 2)


@dataclass(frozen=True)
class AttentionTransfer(_Patterns):
    """Attention transfer: the student is active where the teacher is.

    L = mean over examples of | Q_s / |Q_s|_2 - Q_t / |Q_t|_2 |_2,   Q_p = sum_c |A_cp|^power (or the largest over c)

    student, teacher: layers whose outputs are maps (B, C, H, W) or sequences (B, L, D); one name serves both. statistic:
    "sum" or "max" over the channels. loss: "norm", or "mse": the mean over places of the squared difference. Maps of two sizes
    are averaged to the smaller one; the channels may differ. Padding is no place.
    Raises UsageError for vectors, which have no places.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", 2017, eq. 2 (weight beta / 2, with beta 1000 divided by the
    places of the map and the batch size). The authors' code has loss="mse".
    """

    student: str
    teacher: str | None = None
    power: float = 2.0
    statistic: str = "sum"
    loss: str = "norm"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "power", self.power)
        require_choice(self, "statistic", self.statistic, ("sum", "max"))
        require_choice(self, "loss", self.loss, ("norm", "mse"))

    def compare(self, own: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
        ours, theirs = (activation_map(x, self.power, self.statistic) for x in (own, target))
        if self.loss == "norm":
            return divergences.norm(ours, theirs)
        squared = (ours - theirs).square()
        return squared.mean(1) if counts is None else squared.sum(1) / counts.sum(1).clamp(min=1)


def activation_map(channels: Tensor, power: float = 2.0, statistic: str = "sum") -> Tensor:
    """sum_c |A_cp|^power, or the largest over c, scaled to length 1: (B, C, P) to (B, P). Without activity: zeros."""
    largest = channels.detach().abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(channels.dtype).tiny)
    strength = (channels / largest).abs()
    strength = strength.square() if power == 2 else strength.clamp(min=1e-12).pow(power) * (strength > 0)
    return divergences.directions(strength.amax(1) if statistic == "max" else strength.sum(1))


@dataclass(frozen=True)
class NeuronSelectivity(_Patterns):
    """Neuron selectivity transfer: the channels' patterns are distributed as the teacher's (maximum mean discrepancy).

    L = mean over examples of  mean_cc' k(t_c, t_c') + mean_cc' k(s_c, s_c') - 2 mean_cc' k(t_c, s_c')
    k(x, y) = (<x, y> + offset)^degree,   t_c, s_c: the patterns of the channels over the places, scaled to length 1

    degree 2 without offset is the paper's polynomial kernel; degree 1 its linear one, which compares mean patterns only.
    Layers, sizes and padding: as `AttentionTransfer`. A channel without activity has the zero pattern.
    Source: Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, section 4 (weight lambda / 2,
    lambda 50). Public code agrees. The paper's Gaussian kernel is not here.
    """

    student: str
    teacher: str | None = None
    degree: int = 2
    offset: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, "degree", self.degree)
        if isinstance(self.offset, bool) or not isinstance(self.offset, (int, float)) or not 0 <= self.offset < 1e3:
            raise UsageError(f"{self.name}: offset={self.offset!r} must be a finite number of at least 0")

    def compare(self, own: Tensor, target: Tensor, counts: Tensor | None) -> Tensor:
        ours, theirs = divergences.directions(own), divergences.directions(target)

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.transpose(1, 2) + self.offset).pow(self.degree).mean((1, 2))

        return kernel(theirs, theirs) + kernel(ours, ours) - 2 * kernel(theirs, ours)
