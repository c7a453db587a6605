"""The contract of every number format: a `Grid` says what is stored of a tensor, finds parameters, encodes and decodes.

    x  --Quantizer.encode-->  Packed (codes, scale, zero_point, codebook)  --Quantizer.decode-->  x^

A `limbeck.quantization.grids.Quantizer` joins a grid with a granularity, a way of finding scales and the type they are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from limbeck.quantization.granularity import Granularity

if TYPE_CHECKING:
    from limbeck.quantization.grids import Quantizer

SCALE_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # what is stored: name in `Packed` -> shape, type


@dataclass(frozen=True)
class Packed:
    """What is stored of a tensor: codes, and whichever of scales, zero points and codebooks its grid has.

    `nbytes` is the sum of the bytes of those tensors, nothing else.
    """

    codes: Tensor
    scale: Tensor | None
    zero_point: Tensor | None
    shape: tuple[int, ...]
    codebook: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name."""
        named = {name: getattr(self, name) for name in ("codes", "scale", "zero_point", "codebook")}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def nbytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.tensors.values())


class Grid:
    """A number format: what a `Quantizer` asks of it. Grids are frozen dataclasses of JSON values.

    bits      stored bits per value, which may be a fraction (ternary: 1.6)
    methods   the ways it knows of finding scales; the first is what it is usually taken with
    """

    methods: ClassVar[tuple[str, ...]] = ("minmax", "mse")
    identity = False
    bits: float

    @property
    def whole(self) -> tuple[float, int, int] | None:
        """(unit, low, high) where every value is unit x a whole number in low..high, within +-127, times its scale; else None."""
        return None

    def whole_numbers(self, packed: Packed) -> Tensor:
        """These whole numbers, int8 in the shape that was encoded; only where `whole` is not None."""
        raise NotImplementedError

    def check_granularity(self, granularity: Granularity) -> None:
        """Raise UsageError where parameters cannot be shared in this way."""

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        """What is stored of a tensor of the given shape."""
        raise NotImplementedError

    def encode(self, x: Tensor, quantizer: Quantizer) -> Packed:
        """Find the parameters for x (...), finite and not empty, and put it on the grid."""
        raise NotImplementedError

    def project(self, x: Tensor, packed: Packed, quantizer: Quantizer) -> Packed:
        """x (...) on the grid with the parameters of `packed`, which stay: nearest values, new codes."""
        raise NotImplementedError

    def codes(self, packed: Packed) -> Tensor:
        """The unpacked codes."""
        raise NotImplementedError

    def decode(self, packed: Packed, quantizer: Quantizer) -> Tensor:
        """The values, float32, in the shape that was encoded."""
        raise NotImplementedError

    def rounded(self, x: Tensor, quantizer: Quantizer) -> Tensor:
        """decode(encode(x)): what x (...) becomes, float32. Grids for which packing takes long have a shorter way."""
        return self.decode(self.encode(x, quantizer), quantizer)

    def check(self, packed: Packed) -> None:
        """Raise ArtifactError for codes that are not on the grid."""
        raise NotImplementedError


def as_stored(scale: Tensor, scale_type: str) -> Tensor:
    """Positive float32 scales (any shape) as `scale_type` holds them, rounded up so that what they cover still fits."""
    kind = SCALE_TYPES[scale_type]
    if kind is torch.float32:
        return scale
    finfo = torch.finfo(kind)
    coarse = scale.clamp(finfo.tiny, finfo.max).to(kind)
    return torch.where(coarse.float() < scale, (coarse.float() * (1 + finfo.eps)).clamp(max=finfo.max).to(kind), coarse)
