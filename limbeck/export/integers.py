"""Quantized weights as other formats hold them: whole numbers, scales, and a zero point or an offset for each group of columns.

    w = s (q - z)   of integers, and of every grid whose values are whole multiples of one number (ternary, binary, E8, ...)
    w = s q + o     of the affine grid

Nothing is quantized again: codes and parameters are those that are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, UsageError
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.granularity import PerChannel, PerGroup
from limbeck.quantization.modules import QuantizedLinear, QuantizedModule
from limbeck.quantization.quantized_embedding import QuantizedEmbedding


@dataclass(frozen=True)
class IntegerWeight:
    """A weight matrix (out, in).

    codes    int16 (out, in): -2^(bits-1) .. 2^(bits-1) - 1 without zero point, else 0 .. 2^bits - 1
    scale    float32 (out, groups)
    zero     int16 (out, groups) on asymmetric integer grids, or None
    offset   float32 (out, groups) on affine grids, or None
    group    columns that share a scale; the last group may have fewer
    """

    path: str
    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    offset: Tensor | None
    group: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def symmetric(self) -> bool:
        """Whether the weights lie around 0: there is neither a zero point nor an offset."""
        return self.zero is None and self.offset is None

    def wider(self, widths: Iterable[int]) -> int:
        """The smallest of these widths that holds the codes."""
        return next(width for width in sorted(widths) if width >= self.bits)

    def unsigned(self, bits: int) -> tuple[Tensor, Tensor]:
        """Codes uint8 (out, in) in 0 .. 2^bits - 1 and zero points int16 (out, groups); of affine grids those are 0."""
        if not self.symmetric:
            zero = torch.zeros(self.scale.shape, dtype=torch.int16) if self.zero is None else self.zero
            return self.codes.to(torch.uint8), zero
        middle = 2 ** (bits - 1)
        return (self.codes + middle).to(torch.uint8), torch.full(self.scale.shape, middle, dtype=torch.int16)

    def blocks(self, parameter: Tensor, size: int) -> Tensor:
        """Parameters (out, groups) for blocks of `size` columns, each inside one group: (out, ceil(in / size))."""
        first = torch.arange(0, self.shape[1], size) // self.group
        return parameter[:, first].contiguous()

    def largest_block(self, most: int) -> int:
        """The largest power of two, at most `most`, in which no block crosses the border of two groups; with one group it need not be
        larger than the row."""
        if self.group >= self.shape[1]:
            return min(most, 1 << (self.shape[1] - 1).bit_length())
        return min(most, self.group & -self.group)


def integer_weight(path: str, module: QuantizedLinear) -> IntegerWeight:
    """The integer form of a module's weight. Raises ExportError for grids that have none."""
    specification, packed = module.specification, module.packed
    grid, granularity = specification.quantizer.grid, specification.granularity
    out, columns = module.matrix_shape
    if isinstance(granularity, PerChannel) and granularity.axis != 0:
        raise ExportError(f"{path}: scales per input are in no format; quantize with weights: channel or a group size")
    group = granularity.size if isinstance(granularity, PerGroup) else columns
    shape = (out, -(-columns // group))

    def small(parameter: Tensor, kind: torch.dtype) -> Tensor:
        parameter = parameter.detach().cpu().to(kind)
        return (parameter if parameter.dim() == 2 else parameter.reshape(-1, 1)).expand(shape).contiguous()

    scale, zero, offset = small(packed.scale, torch.float32) if packed.scale is not None else None, None, None
    if isinstance(grid, AffineGrid):
        codes, offset, bits = grid.codes(packed), small(packed.zero_point, torch.float32), grid.bits
    elif grid.whole is not None:
        unit, low, high = grid.whole
        codes, scale = grid.whole_numbers(packed), scale * unit
        bits = max((-low - 1).bit_length(), high.bit_length()) + 1
    elif specification.grid is None:
        codes, zero, bits = grid.codes(packed), small(packed.zero_point, torch.int16), grid.bits
    else:
        raise ExportError(
            f"{path}: the values of {grid} are no whole multiples of a scale, which is what other formats hold. Quantize with "
            "integers, affine, ternary, binary or e8, or export the float weights they stand for (transformers, after lb.load)"
        )
    codes = codes.detach().cpu().to(torch.int16).reshape(out, columns).contiguous()
    return IntegerWeight(path, codes, scale, zero, offset, min(group, columns), max(2, bits))


def quantized_layers(model: nn.Module) -> dict[str, QuantizedModule]:
    """Quantized layers that multiply, by path; tables of embeddings are none of them."""
    modules = model.named_modules()
    return {path: m for path, m in modules if isinstance(m, QuantizedModule) and not isinstance(m, QuantizedEmbedding)}


def weight_only_linears(model: nn.Module, form: str, convolutions: bool = False) -> dict[str, QuantizedLinear]:
    """The quantized linear layers of a model by path. Raises UsageError where there are none, ExportError for quantized inputs and,
    unless allowed, convolutions."""
    found = quantized_layers(model)
    if not found:
        raise UsageError(
            f"{type(model).__name__} holds no quantized module: apply a quantize step before an export as {form}"
        )
    for path, module in found.items():
        if module.specification.input is not None:
            raise ExportError(f"{path}: its inputs are integers too; {form} is for weights alone (activations: null)")
        if not convolutions and not isinstance(module, QuantizedLinear):
            raise ExportError(f"{path}: {form} holds no convolutions; leave them out of the quantize step (ignore)")
    return {path: module for path, module in found.items() if isinstance(module, QuantizedLinear)}


def half_scales(weight: IntegerWeight, form: str) -> Tensor:
    """The scales (out, groups) as float16. Raises ExportError where that would change one."""
    half = weight.scale.to(torch.float16)
    if not torch.equal(half.float(), weight.scale):
        raise ExportError(
            f"{weight.path}: {form} stores scales in float16, which would change those of this layer; quantize with "
            "scale_type: float16"
        )
    return half
