"""Levels within a range: every channel or group is scaled to [0, 1] by its own minimum and maximum and put on levels that all share.

    v = (x - low) / span,   span = high - low,   code = the nearest of the levels p_1 .. p_s,   x^ = low + span p_code

Stored: codes, span (as scale) and low (as zero point) of every channel or group, and one table of levels per tensor. The levels can be learned
(`prepare_qat(learned=True)`):  dL/dp_j = sum over the elements on level j of span dL/dx^.
Source: Polino, Pascanu and Alistarh, "Model compression via distillation and quantization", 2018, section 2.2 and algorithm 2. Deviation:
their buckets run over rows of a matrix, groups here end with a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from limbeck.errors import ArtifactError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, parameter_shape, rows, spread
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits


@dataclass(frozen=True)
class RangeLevelGrid(Grid):
    """width: bits of a code, 1 to 8. Ways of finding the levels: "uniform", j / (2^width - 1); "quantile", those of the scaled elements at
    (j + 1/2) / 2^width, with equally many elements around each. With uniform levels and float32 ranges |x - x^| <= span / (2 (2^width - 1)).
    """

    methods: ClassVar[tuple[str, ...]] = ("uniform", "quantile")
    width: int = 4

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1, 8)

    @property
    def bits(self) -> float:
        return self.width

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        kind = SCALE_TYPES[scale_type]
        ranges = (parameter_shape(shape, granularity), kind)
        codes = ((*outer, packed_length(count, self.width)), torch.uint8)
        return {"codes": codes, "scale": ranges, "zero_point": ranges, "codebook": ((2**self.width,), kind)}

    def encode(self, x: Tensor, quantizer) -> Packed:
        levels = torch.linspace(0, 1, 2**self.width, device=x.device)
        if quantizer.method == "quantile":
            places = (torch.arange(2**self.width, device=x.device) + 0.5) / 2**self.width
            scaled = _scaled(x, *self.ranges(x, quantizer), quantizer.granularity)
            levels = scaled.flatten().sort().values[(places * x.numel()).long()]
        found = Packed(x, None, None, tuple(x.shape), levels.to(SCALE_TYPES[quantizer.scale_type]))
        return self.project(x, found, quantizer)

    def ranges(self, x: Tensor, quantizer) -> tuple[Tensor, Tensor]:
        """Span and low for x, each of `parameter_shape`, as they are stored; a span of 0 is stored as 1."""
        elements, shape = rows(x.float(), quantizer.granularity), parameter_shape(x.shape, quantizer.granularity)
        kind = SCALE_TYPES[quantizer.scale_type]
        limit = torch.finfo(kind).max
        low = elements.amin(1).clamp(-limit, limit).to(kind)
        high = elements.amax(1)
        # half the range at a time: the difference itself may overflow
        span = (high / 2 - low.float() / 2).clamp(max=torch.finfo(torch.float32).max / 2) * 2
        span = as_stored(
            torch.where(span > 0, span.clamp(min=torch.finfo(torch.float32).tiny), 1.0), quantizer.scale_type
        )
        return span.reshape(shape), low.reshape(shape)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        """With the levels of `packed`; with its ranges where it has some, else with those of x."""
        span, low = packed.scale, packed.zero_point
        if span is None:
            span, low = self.ranges(x, quantizer)
        rising, order = packed.codebook.float().sort()
        scaled = _scaled(x, span, low, quantizer.granularity)
        codes = order[torch.bucketize(scaled.contiguous(), (rising[1:] + rising[:-1]) / 2)].to(torch.uint8)
        stored = pack_bits(codes.reshape(x.shape or (1,)), self.width)
        return Packed(stored, span, low, tuple(x.shape), packed.codebook)

    def codes(self, packed: Packed) -> Tensor:
        return unpack_bits(packed.codes, self.width, (packed.shape or (1,))[-1]).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        span, low = (spread(t.float(), packed.shape, quantizer.granularity) for t in (packed.scale, packed.zero_point))
        return low + span * packed.codebook.float()[self.codes(packed).long()]

    def check(self, packed: Packed) -> None:
        if not (packed.scale > 0).all():
            raise ArtifactError(f"a stored span of {self} is not positive")


def _scaled(x: Tensor, span: Tensor, low: Tensor, granularity: Granularity) -> Tensor:
    """(x - low) / span, float32 (...)."""
    span, low = (spread(t.float(), x.shape, granularity) for t in (span, low))
    return x.float() / span - low / span
