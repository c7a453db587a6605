"""Granularity: which elements of a tensor share their parameters (a scale, a zero point, a codebook).

One set per tensor, one per channel (index of one axis), one per group of consecutive elements of the last axis, or one per run of
consecutive indices of the first axis (the last group or run may be shorter). `rows` lays the elements that share a set side by side; `from_rows` puts them back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError


@dataclass(frozen=True)
class PerTensor:
    """One scale for everything: shape ()."""


@dataclass(frozen=True)
class PerChannel:
    """One scale per index of `axis`: shape (x.shape[axis],)."""

    axis: int = 0


@dataclass(frozen=True)
class PerGroup:
    """One scale per `size` consecutive elements of the last axis: shape (..., ceil(n / size))."""

    size: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 2:
            raise UsageError(
                f"group size {self.size!r}: a group has at least 2 elements (one scale each would be larger)"
            )


@dataclass(frozen=True)
class PerRows:
    """One set per `size` consecutive indices of the first axis: shape (ceil(x.shape[0] / size),)."""

    size: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 2:
            raise UsageError(f"run of rows {self.size!r}: at least 2 (one each is a set per channel)")


Granularity = PerTensor | PerChannel | PerGroup | PerRows


def granularity_to_json(granularity: Granularity) -> Any:
    """ "tensor", {"channel": axis}, {"group": size} or {"rows": size}."""
    if isinstance(granularity, PerTensor):
        return "tensor"
    if isinstance(granularity, PerRows):
        return {"rows": granularity.size}
    return {"channel": granularity.axis} if isinstance(granularity, PerChannel) else {"group": granularity.size}


def granularity_from_json(value: Any) -> Granularity:
    """The reverse of `granularity_to_json`. Raises ArtifactError for anything else."""
    if value == "tensor":
        return PerTensor()
    if isinstance(value, dict) and len(value) == 1:
        (name, number), *_ = value.items()
        kinds = {"channel": PerChannel, "group": PerGroup, "rows": PerRows}
        if name in kinds and isinstance(number, int):
            return kinds[name](number)
    raise ArtifactError(
        f'granularity {value!r}: allowed are "tensor", {{"channel": axis}}, {{"group": size}} and {{"rows": size}}'
    )


def parameter_shape(shape: Sequence[int], granularity: Granularity) -> tuple[int, ...]:
    """Shape of the scales of a tensor of the given shape."""
    if isinstance(granularity, PerTensor):
        return ()
    if isinstance(granularity, PerChannel):
        return (shape[granularity.axis],)
    if isinstance(granularity, PerRows):
        return (math.ceil(shape[0] / granularity.size),)
    return (*shape[:-1], math.ceil(shape[-1] / granularity.size))


def spread(parameter: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """Scales or zero points, as `parameter_shape` has them, broadcastable to a tensor of the given shape."""
    if isinstance(granularity, PerTensor):
        return parameter
    if isinstance(granularity, PerChannel):
        view = [1] * len(shape)
        view[granularity.axis] = shape[granularity.axis]
        return parameter.reshape(view)
    if isinstance(granularity, PerRows):
        return parameter.repeat_interleave(granularity.size)[: shape[0]].reshape(-1, *[1] * (len(shape) - 1))
    return parameter.repeat_interleave(granularity.size, dim=-1)[..., : shape[-1]]


def rows(x: Tensor, granularity: Granularity, fill: float | None = None) -> Tensor:
    """The elements that share a scale, one row each: (number of scales, elements). A short last group or run repeats its
    last element or row, or holds `fill` where one is given."""
    if isinstance(granularity, PerTensor):
        return x.reshape(1, -1)
    if isinstance(granularity, PerChannel):
        return x.movedim(granularity.axis, 0).reshape(x.shape[granularity.axis], -1)
    if isinstance(granularity, PerRows):
        missing = -x.shape[0] % granularity.size
        if missing:
            more = x[-1:].expand(missing, *x.shape[1:])
            x = torch.cat([x, more if fill is None else torch.full_like(more, fill)])
        return x.reshape(-1, granularity.size * x[0].numel())
    missing = -x.shape[-1] % granularity.size
    if missing:
        more = x[..., -1:].expand(*x.shape[:-1], missing)
        x = torch.cat([x, more if fill is None else torch.full_like(more, fill)], -1)
    return x.reshape(-1, granularity.size)


def from_rows(elements: Tensor, shape: Sequence[int], granularity: Granularity) -> Tensor:
    """The reverse of `rows`: elements (number of scales, elements) in a tensor of the given shape."""
    if isinstance(granularity, PerTensor):
        return elements.reshape(tuple(shape))
    if isinstance(granularity, PerChannel):
        axis = granularity.axis % len(shape)
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return elements.reshape(moved).movedim(0, axis)
    if isinstance(granularity, PerRows):
        return elements.reshape(-1, *shape[1:])[: shape[0]]
    count = math.ceil(shape[-1] / granularity.size)
    return elements.reshape(*shape[:-1], count * granularity.size)[..., : shape[-1]]


def min_max(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest value per scale, each of `parameter_shape`, in float32."""
    elements = rows(x.float(), granularity)
    shape = parameter_shape(x.shape, granularity)
    return elements.amin(1).reshape(shape), elements.amax(1).reshape(shape)
