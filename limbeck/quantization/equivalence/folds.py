"""Folds: a scale and a shift per channel that one layer gives up and the next ones take over; the model's outputs stay.

    y' = (y - t) / s        of the source: a norm's weight and bias, or a layer's rows
    W y + b = (W s) y' + (b + W t)       of every reader: its columns, and its bias where there is a shift

A value projection whose heads are each read by several query heads (grouped queries) has fewer channels than its reader: channel
(group, d) of the source is channel (group, query, d) of the reader for every query head of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError
from limbeck.plan import Plan
from limbeck.pruning.slicing import is_conv1d, width
from limbeck.tensors import from_text, to_text

KIND = "rescale"
KINDS = ("norm", "value", "factor", "relu", "final")


@dataclass(frozen=True)
class Fold:
    """`source` (path of a norm or a layer) feeds `readers` and nothing else.

    Its channels are start ... start + groups x width of what it gives (`start`: where the values of a fused projection begin);
    a reader has groups x repeat x width.
    """

    kind: str
    source: str
    readers: tuple[str, ...]
    width: int
    start: int = 0
    groups: int = 1
    repeat: int = 1

    @property
    def channels(self) -> int:
        """Channels of the source that are scaled."""
        return self.groups * self.width

    def to_readers(self, x: Tensor) -> Tensor:
        """Source channels (channels, ...) -> as the readers see them (groups repeat width, ...)."""
        x = x.unflatten(0, (self.groups, 1, self.width))
        return x.expand(-1, self.repeat, *x.shape[2:]).flatten(0, 2)

    def to_source(self, x: Tensor, largest: bool = True) -> Tensor:
        """What readers see of each channel (groups repeat width,) -> the largest, or the mean, per source channel (channels,)."""
        x = x.unflatten(0, (self.groups, self.repeat, self.width))
        return (x.amax(1) if largest else x.mean(1)).flatten()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "readers": list(self.readers)}

    @staticmethod
    def from_json(value: Any) -> Fold:
        """Read a fold of a plan. Raises ArtifactError for anything that is not one."""
        try:
            fold = Fold(**{**value, "readers": tuple(value["readers"])})
            sizes = (fold.width, fold.groups, fold.repeat)
            if (
                not all(type(size) is int and size > 0 for size in sizes)
                or type(fold.start) is not int
                or fold.start < 0
            ):
                raise ValueError("sizes must be positive whole numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"a fold of the plan cannot be read ({error}): {value!r:.200}") from error
        return fold


def columns(module: nn.Module) -> Tensor:
    """A reader's weight with its inputs first: (in, everything else), a view."""
    return module.weight if is_conv1d(module) else module.weight.transpose(0, 1)


def rows(module: nn.Module) -> Tensor:
    """A source's weight with its channels first: a norm's (channels,), a layer's (out, everything else), a view."""
    return module.weight.transpose(0, 1) if is_conv1d(module) else module.weight


def _along(factor: Tensor, weight: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (weight.dim() - 1))


@torch.no_grad()
def rescale(model: nn.Module, fold: Fold, scale: Tensor, shift: Tensor | None = None) -> None:
    """Carry out a fold in place, in float64. scale (channels,), positive; shift (channels,) or None."""
    source, part = model.get_submodule(fold.source), slice(fold.start, fold.start + fold.channels)
    weight = rows(source)
    scale = scale.to(weight.device, torch.float64)
    if shift is not None:
        shift = shift.to(scale)
        source.bias[part] = ((source.bias[part].double() - shift) / scale).to(source.bias.dtype)
    elif getattr(source, "bias", None) is not None:
        source.bias[part] = (source.bias[part].double() / scale).to(source.bias.dtype)
    weight[part] = (weight[part].double() / _along(scale, weight)).to(weight.dtype)
    for path in fold.readers:
        reader = model.get_submodule(path)
        weight = columns(reader)
        if shift is not None:
            moved = (weight.double() * _along(fold.to_readers(shift), weight)).sum(0)
            reader.bias.copy_((reader.bias.double() + moved).to(reader.bias.dtype))
        weight.copy_((weight.double() * _along(fold.to_readers(scale), weight)).to(weight.dtype))


def rescale_plan(
    folds: Sequence[Fold], scales: dict[str, Tensor], shifts: dict[str, Tensor] | None = None, **more: Any
) -> Plan:
    """The plan that carries out folds; scales and shifts by source. more: further decisions to record."""
    data = {"scale": {path: to_text(scale) for path, scale in scales.items()}}
    if shifts:
        data["shift"] = {path: to_text(shift) for path, shift in shifts.items()}
    paths = {fold.source: fold.to_json() for fold in folds}
    return Plan(KIND, {"paths": paths, "shifted": bool(shifts), **more, "data": data})


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Carry out a plan of folds. Without its data (an artifact's lineage) only the biases that shifts need are made.

    Raises ArtifactError where the plan does not fit the model.
    """
    folds = [Fold.from_json(value) for value in plan.decisions.get("paths", {}).values()]
    for fold in folds:
        _check(model, fold)
        for path in fold.readers if plan.decisions.get("shifted") else ():
            gain_bias(model.get_submodule(path))
    data = plan.decisions.get("data")
    for fold in folds if data is not None else ():
        read = {
            name: from_text(data[name][fold.source], (fold.channels,), f"the {name} of {fold.source!r}")
            for name in ("scale", "shift")
            if fold.source in data.get(name, {})
        }
        if "scale" not in read or not (read["scale"] > 0).all():
            raise ArtifactError(f"the plan has no positive scale for {fold.source!r}")
        if not model.get_submodule(fold.source).weight.is_meta:
            rescale(model, fold, read["scale"], read.get("shift"))
    return model


def gain_bias(module: nn.Module) -> None:
    """Give a layer a bias of zeros where it has none."""
    if module.bias is None:
        out = module.weight.shape[1 if is_conv1d(module) else 0]
        module.bias = nn.Parameter(module.weight.new_zeros(out), requires_grad=module.weight.requires_grad)


def _check(model: nn.Module, fold: Fold) -> None:
    for path in (fold.source, *fold.readers):
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ArtifactError(
                f"the plan rescales {path!r}, which this {type(model).__name__} does not have"
            ) from error
        if type(module._parameters.get("weight")) is not nn.Parameter:
            raise ArtifactError(f"the plan rescales {path!r}, whose weight is not a plain parameter")
        size = len(rows(module)) if path == fold.source else width(module, "in")
        need = fold.start + fold.channels if path == fold.source else fold.channels * fold.repeat
        if size < need or (path != fold.source and size != need):
            raise ArtifactError(f"the plan rescales {need} channels of {path!r}, which has {size}")
