"""Level grids: a finite set of values, times a scale. The formats that are a table.

    x^ = s l_q,   q = the code of the level nearest to x / s

A tie goes to the level an even number of codes from that of 0, as in IEEE rounding. The grids are in `limbeck.quantization.formats`.
A scale of 0 is stored where all elements are 0; they decode to 0. How scales are found is the same for all, see `level_scales`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from limbeck.errors import ArtifactError
from limbeck.quantization.contract import SCALE_TYPES, Grid, Layout, Packed, as_stored
from limbeck.quantization.granularity import Granularity, parameter_shape, rows, spread
from limbeck.quantization.packing import pack_bits, packed_length, unpack_bits

ELEMENTS_AT_ONCE = 1 << 22  # elements whose errors are held in memory while scales are searched
FEW = 16  # levels; places among fewer are counted, among more they are searched


class LevelGrid(Grid):
    """A grid whose codes stand for numbers. Subclasses say `values`: the number of every code, NaN where a code stands for none."""

    def values(self) -> Sequence[float]:
        raise NotImplementedError

    @property
    def table(self) -> Tensor:
        """The level of every code, float32 (codes,); NaN for codes that stand for none."""
        return _tables(self)[0]

    @property
    def rising(self) -> tuple[Tensor, Tensor, Tensor]:
        """The levels in rising order, float32 (n,), their codes, uint8 (n,), and the numbers above which the next level is the nearest, float32
        (n - 1,): the middle of two neighbours, or where a tie goes up the largest number below it."""
        return _tables(self)[1:]

    @property
    def bits(self) -> float:
        return max(1, (len(self.values()) - 1).bit_length())

    def places(self, ratio: Tensor) -> Tensor:
        """Which of the rising levels is the nearest to x / s: whole numbers (...)."""
        limits = self.rising[2]
        if len(limits) >= FEW:
            return torch.bucketize(ratio.contiguous(), limits.to(ratio.device), out_int32=True)
        found = torch.zeros_like(ratio, dtype=torch.uint8)
        for limit in limits.tolist():  # several times faster than a search
            found += ratio > limit
        return found

    def nearest(self, ratio: Tensor) -> Tensor:
        """Codes of the levels nearest to x / s, uint8 (...)."""
        return entries_of(self.rising[1], self.places(ratio))

    def onto(self, ratio: Tensor) -> Tensor:
        """The levels nearest to x / s, float32 (...)."""
        return entries_of(self.rising[0], self.places(ratio))

    def store(self, codes: Tensor) -> Tensor:
        """Codes (..., n) as bytes."""
        return pack_bits(codes, int(self.bits))

    def unstore(self, stored: Tensor, count: int) -> Tensor:
        """The reverse: uint8 codes (..., count)."""
        return unpack_bits(stored, int(self.bits), count)

    def stored_length(self, count: int) -> int:
        return packed_length(count, int(self.bits))

    def layout(self, shape: Sequence[int], granularity: Granularity, scale_type: str) -> Layout:
        *outer, count = shape or (1,)
        scales = parameter_shape(shape, granularity)
        return {
            "codes": ((*outer, self.stored_length(count)), torch.uint8),
            "scale": (scales, SCALE_TYPES[scale_type]),
        }

    def encode(self, x: Tensor, quantizer) -> Packed:
        coding, scale = level_scales(x, self, quantizer.granularity, quantizer.method, quantizer.scale_type)
        return self._place(x, coding, scale, quantizer.granularity)

    def project(self, x: Tensor, packed: Packed, quantizer) -> Packed:
        return self._place(x, packed.scale, packed.scale, quantizer.granularity)

    def _place(self, x: Tensor, coding: Tensor, scale: Tensor, granularity: Granularity) -> Packed:
        codes = self.nearest(ratios(x, coding, granularity))
        return Packed(self.store(codes.reshape(x.shape or (1,))), scale, None, tuple(x.shape))

    def codes(self, packed: Packed) -> Tensor:
        return self.unstore(packed.codes, (packed.shape or (1,))[-1]).reshape(packed.shape)

    def decode(self, packed: Packed, quantizer) -> Tensor:
        return entries_of(self.table, self.codes(packed)) * spread(
            packed.scale.float(), packed.shape, quantizer.granularity
        )

    def check(self, packed: Packed) -> None:
        codes = self.codes(packed).long()
        if int(codes.max()) >= len(self.table) or torch.isnan(self.table.to(codes.device)[codes]).any():
            raise ArtifactError(f"some stored codes stand for no level of {self}")
        if (packed.scale < 0).any():
            raise ArtifactError(f"a stored scale of {self} is negative")

    @property
    def whole(self) -> tuple[float, int, int] | None:
        return _whole_levels(self)[0]

    def whole_numbers(self, packed: Packed) -> Tensor:
        return _whole_levels(self)[1].to(packed.codes.device)[self.codes(packed).int()]


@functools.lru_cache(maxsize=256)
def _tables(grid: LevelGrid) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.inference_mode(False), torch.device("cpu"):
        table = torch.tensor(list(grid.values()), dtype=torch.float64).float()
        codes = [code for code in range(len(table)) if not math.isnan(table[code])]
        codes.sort(key=lambda code: float(table[code]))
        zero = next((code for code in codes if table[code] == 0), 0)
        odd = torch.tensor([(code - zero) % 2 == 1 for code in codes])
        levels = table[codes]
        middles = (levels[1:] + levels[:-1]) / 2
        limits = torch.where(odd[:-1], middles.nextafter(torch.tensor(-torch.inf)), middles)
        return table, levels, torch.tensor(codes, dtype=torch.uint8), limits


def entries_of(table: Tensor, places: Tensor) -> Tensor:
    """table[places] of whole numbers (...), some times faster."""
    return table.to(places.device).index_select(0, places.int().flatten()).view(places.shape)


@functools.lru_cache(maxsize=256)
def _whole_levels(grid: LevelGrid) -> tuple[tuple[float, int, int] | None, Tensor | None]:
    """`whole`, which kernels ask for at every product, and the whole number of every code, int8 (codes,); None where levels are no multiples."""
    levels = grid.rising[0]
    unit = float(levels[levels != 0].abs().min())
    whole = (grid.table / unit).nan_to_num(0.0)
    if not torch.equal(whole, whole.round()) or whole.abs().max() > 127:
        return None, None
    return (unit, int(whole.min()), int(whole.max())), whole.to(torch.int8)


def ratios(x: Tensor, scale: Tensor, granularity: Granularity) -> Tensor:
    """x / s in float32, 0 where the scale is 0; x (...), scale of `parameter_shape`."""
    return over(x.float(), spread(scale.float(), x.shape, granularity))


def over(x: Tensor, scale: Tensor) -> Tensor:
    """x / s, 0 where s is 0; x (...), s (...) or broadcastable to it."""
    return torch.where(scale == 0, torch.zeros_like(scale), x / torch.where(scale == 0, 1.0, scale))


def search_scale(
    elements: Tensor, start: Tensor, onto: Callable[[Tensor], Tensor], candidates: int = 60, smallest: float = 0.1
) -> Tensor:
    """The scale s per row with the least squared error of elements on s times a grid: a start, ..., `smallest` x start, and then the
    best multiple of the levels chosen there, where that is better still.

    elements (rows, n), NaN where there is none; start (rows, 1) positive. onto(ratios) gives the levels nearest to (rows, n) numbers.
    Returns (rows, 1).
    """

    def error(scale: Tensor) -> tuple[Tensor, Tensor]:
        levels = onto(elements / scale)
        return (levels * scale - elements).square().nansum(1, keepdim=True), levels

    best, least = start, torch.full_like(start, torch.inf)
    for fraction in torch.linspace(1.0, smallest, candidates).tolist():
        found, _ = error(start * fraction)
        best, least = torch.where(found < least, start * fraction, best), torch.minimum(found, least)
    fitted = fit_scale(elements, error(best)[1])
    found, _ = error(torch.where(fitted > 0, fitted, best))
    return torch.where((found < least) & (fitted > 0), fitted, best)


def fit_scale(elements: Tensor, levels: Tensor) -> Tensor:
    """The multiple of fixed levels nearest to the elements: sum x l / sum l^2 per row.  (rows, n) -> (rows, 1); NaN elements count
    for nothing, levels of 0 alone give 0."""
    levels = torch.where(torch.isnan(elements), 0.0, levels)
    size = levels.square().sum(1, keepdim=True)
    return (elements.nan_to_num(0.0) * levels).sum(1, keepdim=True) / torch.where(size == 0, 1.0, size)


def level_scales(
    x: Tensor, grid: LevelGrid, granularity: Granularity, method: str, scale_type: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Two scales for x (...), each of `parameter_shape`: the one that codes are chosen with, and the one that is stored.

    minmax      s = the least for which no element lies beyond the outermost levels
    mse         the least squared error, see `search_scale`
    absmean     s = mean |x|        (binary: the best scale, XNOR-Net; ternary: BitNet b1.58)
    absmedian   s = median |x|, the lower of two (ternary: BitNet b1.58 reloaded); the mean where that is 0
    twn         ternary weight networks: codes are sign(x) where |x| > 0.7 mean |x|, then s = mean |x| over those

    Only "twn" has two different ones. The sums run over x / max |x|, so that the largest numbers do not overflow.
    """
    elements = rows(x.float(), granularity, fill=math.nan)
    size = elements.abs().nan_to_num(0.0).amax(1, keepdim=True)
    elements = elements / torch.where(size == 0, 1.0, size)
    coding = stored = scales(elements, grid, method)
    if method == "twn":
        stored = fit_scale(elements, grid.onto(elements / torch.where(coding == 0, 1.0, coding)))

    def finished(scale: Tensor) -> Tensor:
        scale = (scale * size).clamp(torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max)
        scale = as_stored(scale, scale_type)
        return torch.where(size == 0, torch.zeros_like(scale), scale).reshape(parameter_shape(x.shape, granularity))

    stored = finished(stored)
    return (finished(coding) if method == "twn" else stored), stored


def scales(elements: Tensor, grid: LevelGrid, method: str) -> Tensor:
    """Coding scales (rows, 1) for elements (rows, n), NaN where there is none, whose largest magnitude is 1 or 0."""
    parts = elements.split(max(1, ELEMENTS_AT_ONCE // max(1, elements.shape[1])))
    return torch.cat([_scales(part, grid, method) for part in parts])


def _scales(elements: Tensor, grid: LevelGrid, method: str) -> Tensor:
    absolute = elements.abs()
    if method == "absmean":
        return absolute.nanmean(1, keepdim=True)
    if method == "absmedian":
        median = absolute.nanmedian(1, keepdim=True).values
        return torch.where(median > 0, median, absolute.nanmean(1, keepdim=True))
    if method == "twn":
        return 2 * 0.7 * absolute.nanmean(1, keepdim=True)
    levels = grid.rising[0].tolist()
    clean = elements.nan_to_num(0.0)
    start = torch.zeros_like(elements[:, :1])
    for side, level in ((clean.amax(1, keepdim=True), levels[-1]), (-clean.amin(1, keepdim=True), -levels[0])):
        if level > 0:
            start = torch.maximum(start, side.clamp(min=0) / level)
    start = torch.where(start > 0, start, 1.0)
    if method == "minmax":
        return start
    return search_scale(elements, start, grid.onto)
