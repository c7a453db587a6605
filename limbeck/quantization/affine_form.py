"""Integer and affine grids as one: values s q + o, low <= q <= high, for methods that choose q, s or o themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.contract import SCALE_TYPES, Packed
from limbeck.quantization.granularity import spread
from limbeck.quantization.grids import IntegerGrid, Quantizer


@dataclass(frozen=True)
class AffineForm:
    """scale, offset: float32 of `parameter_shape` of the weight (out, n), numbers that can be stored. low, high: the codes."""

    quantizer: Quantizer
    shape: tuple[int, int]
    scale: Tensor
    offset: Tensor
    low: int
    high: int

    @staticmethod
    def of(weight: Tensor, quantizer: Quantizer, who: str) -> AffineForm:
        """With the parameters that the quantizer finds for a weight. Raises UsageError, naming `who`, for other grids."""
        grid, shape = quantizer.grid, (weight.shape[0], weight.shape[1])
        if isinstance(grid, AffineGrid):
            scale, offset = grid.parameters(weight, quantizer)
            return AffineForm(quantizer, shape, scale.float(), offset.float(), 0, grid.high)
        if not isinstance(grid, IntegerGrid) or grid.identity:
            raise UsageError(f"{who} works on integer and affine grids, not on {grid}")
        scale, zero = quantizer.parameters(weight)
        return AffineForm(quantizer, shape, scale.float(), -scale.float() * zero, grid.low, grid.high)

    @property
    def fits_offset(self) -> bool:
        """Whether any offset can be stored, or only multiples of the scale."""
        return isinstance(self.quantizer.grid, AffineGrid)

    def with_parameters(self, scale: Tensor, offset: Tensor) -> AffineForm:
        """With other scales and, where they can be stored, offsets, each rounded to the type it is stored in."""
        kind = SCALE_TYPES[self.quantizer.scale_type]
        scale = scale.to(kind).float()
        zero = self.zero_point if not self.fits_offset else None
        return replace(self, scale=scale, offset=offset.to(kind).float() if zero is None else -scale * zero)

    @property
    def zero_point(self) -> Tensor:
        return torch.round(-self.offset / self.scale)

    def wide(self) -> tuple[Tensor, Tensor]:
        """Scale and offset, broadcastable to the weight."""
        return tuple(spread(t, self.shape, self.quantizer.granularity) for t in (self.scale, self.offset))

    def ratio(self, weight: Tensor) -> Tensor:
        """(w - o) / s: where codes are the whole numbers.  (out, n)"""
        scale, offset = self.wide()
        return (weight - offset) / scale

    def nearest(self, weight: Tensor) -> Tensor:
        """Codes (out, n), whole numbers in the type of the weight."""
        return torch.round(self.ratio(weight)).clamp(self.low, self.high)

    def values(self, codes: Tensor) -> Tensor:
        """s q + o of codes (out, n), whole or not."""
        scale, offset = self.wide()
        return codes * scale + offset

    def pack(self, codes: Tensor) -> Packed:
        """The stored form of whole codes (out, n)."""
        quantizer, kind = self.quantizer, SCALE_TYPES[self.quantizer.scale_type]
        scale = self.scale.to(kind)
        if self.fits_offset:
            return quantizer.grid.pack(codes.to(torch.uint8), scale, self.offset.to(kind))
        codes = codes.to(quantizer.grid.code_type)
        return quantizer.pack(codes, scale, self.zero_point.to(torch.int32))
