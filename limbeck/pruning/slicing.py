"""Slicing: keep some positions of the input or output axis of one module, with no data and no tracing.

`out` counts what a module produces (rows of a Linear, filters of a convolution, channels of a normalization), `in` what it
reads. A depthwise convolution and a batch normalization have one axis only: `out`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from limbeck.errors import ArtifactError

Kept = Mapping[str, Sequence[int]]  # axis -> kept positions, in rising order


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is the Conv1D of transformers: a Linear whose weight is stored (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def is_depthwise(module: nn.Module) -> bool:
    """A convolution with one filter per channel."""
    return (
        isinstance(module, _ConvNd) and module.groups > 1 and module.groups == module.in_channels == module.out_channels
    )


def dimensions(module: nn.Module) -> dict[str, dict[str, int]]:
    """Parameter or buffer name -> {axis: dimension} for every tensor that a slice would cut; {} where we cannot slice."""
    if isinstance(module, nn.Linear):
        axes = {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}}
    elif is_conv1d(module):
        axes = {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}}
    elif is_depthwise(module):
        axes = {"weight": {"out": 0}, "bias": {"out": 0}}
    elif isinstance(module, _ConvTransposeNd) and module.groups == 1:
        axes = {"weight": {"out": 1, "in": 0}, "bias": {"out": 0}}
    elif isinstance(module, _ConvNd) and module.groups == 1:
        axes = {"weight": {"out": 0, "in": 1}, "bias": {"out": 0}}
    elif isinstance(module, _NormBase):
        axes = {name: {"out": 0} for name in ("weight", "bias", "running_mean", "running_var")}
    elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
        axes = {"weight": {"out": 0}}
    else:
        return {}
    own = {**module._parameters, **module._buffers}
    held = {name: own.get(name) for name in axes if getattr(module, name, None) is not None}
    if any(value is None or type(value) not in (nn.Parameter, Tensor) for value in held.values()):
        return {}  # a quantized, parametrized or otherwise wrapped tensor
    return {name: axes[name] for name in held}


def width(module: nn.Module, axis: str) -> int:
    """How many positions an axis has."""
    for name, axes in dimensions(module).items():
        if axis in axes:
            return getattr(module, name).shape[axes[axis]]
    if isinstance(module, _NormBase) and axis == "out":
        return module.num_features
    raise ArtifactError(f"{type(module).__name__} has no {axis!r} axis that can be sliced")


def slice_module(path: str, module: nn.Module, kept: Kept) -> None:
    """Keep the named positions, in place: tensors first, then the attributes that state the size.

    Raises ArtifactError where the module cannot be sliced or has no such position.
    """
    if not dimensions(module) and not isinstance(module, _NormBase):
        raise ArtifactError(f"the plan slices {path!r}, but a {type(module).__name__} cannot be sliced")
    for axis, positions in kept.items():
        size = width(module, axis)
        if not positions or min(positions) < 0 or max(positions) >= size or len(set(positions)) != len(positions):
            raise ArtifactError(f"the plan keeps {len(positions)} positions of {path!r} ({axis}) that it does not have")
    for name, axes in dimensions(module).items():
        value = getattr(module, name)
        for axis, positions in kept.items():
            if axis in axes:
                index = torch.as_tensor(list(positions), dtype=torch.long, device=value.device)
                value = value.detach().index_select(axes[axis], index).clone()
        old = getattr(module, name)
        if value is not old:
            sliced = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
            setattr(module, name, sliced)
    _restate(module, kept)


def _restate(module: nn.Module, kept: Kept) -> None:
    out, read = (len(kept[axis]) if axis in kept else None for axis in ("out", "in"))
    if is_depthwise(module) and out:
        module.groups = module.in_channels = module.out_channels = out
        return
    names = {
        nn.Linear: ("out_features", "in_features"),
        _ConvNd: ("out_channels", "in_channels"),
        _NormBase: ("num_features", None),
        nn.PReLU: ("num_parameters", None),
    }
    produced, consumed = next((v for k, v in names.items() if isinstance(module, k)), ("nf", "nx"))
    if out is not None:
        setattr(module, produced, out)
    if read is not None and consumed:
        setattr(module, consumed, read)
