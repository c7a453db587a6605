"""Weight-only ONNX graphs: every quantized linear layer is one MatMulNBits of ONNX Runtime (domain com.microsoft).

Codes are those that are stored; widths of 3 and of 5 to 7 bits take 4 and 8 bits there. Blocks are groups, or the largest power of two
that divides them; scales per output or tensor are repeated every 128 inputs.

| weights                                       | zero points   | kernel at accuracy level 4         |
|-----------------------------------------------|---------------|------------------------------------|
| integers, ternary, binary, e8; 2, 4 or 8 bits | whole numbers | int8 activations, block by block   |
| affine; 2 or 4 bits                           | real numbers  | float32, after dequantizing        |

The accuracy level says what activations become inside the product: 0 and 1 float32, 2 float16, 3 bfloat16, 4 int8. A kernel may compute more
exactly than it is asked to. ONNX Runtime 1.31 on x86 computes 0 to 3 in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError, require
from limbeck.export.integers import IntegerWeight, integer_weight, weight_only_linears
from limbeck.quantization.packing import pack_bits
from limbeck.quantization.replacement import replace

OPERATOR = "com.microsoft::MatMulNBits"
WIDTHS = (2, 4, 8)
LARGEST_BLOCK, SMALLEST_BLOCK = 128, 16
LEVELS = (0, 1, 2, 3, 4)
EXACT = 1


def export_nbits(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    dynamic: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write a model with quantized weights as ONNX, at accuracy level EXACT; `set_accuracy_level` changes that.

    Convolutions multiply with dequantized weights, as in a QDQ graph. Raises UsageError for a model without quantized modules, ExportError
    for quantized inputs and for grids that MatMulNBits cannot hold.
    """
    from limbeck.export.onnx import write_float
    from limbeck.export.qdq import OPSET, with_placeholders
    from limbeck.export.qdq_graph import expand

    model = copy.deepcopy(model).cpu().eval()
    for name, module in weight_only_linears(model, "onnx_weight_only", convolutions=True).items():
        replace(model, name, _Product(integer_weight(name, module), module.bias))
    write_float(with_placeholders(model, {}), example, path, opset=OPSET, dynamic=dynamic)
    expand(path)


def set_accuracy_level(path: Path, level: int) -> None:
    """Ask every MatMulNBits of a file for another accuracy level, in place."""
    onnx = require("onnx", "onnx")
    proto = onnx.load(str(path), load_external_data=False)
    for node in proto.graph.node:
        for attribute in node.attribute if node.op_type == "MatMulNBits" else ():
            if attribute.name == "accuracy_level":
                attribute.i = level
    onnx.save(proto, str(path))


class _Product(nn.Module):
    """x W^T + b as one MatMulNBits."""

    def __init__(self, weight: IntegerWeight, bias: nn.Parameter | None):
        super().__init__()
        out, columns = weight.shape
        self.bits, self.block = weight.wider(WIDTHS), weight.largest_block(LARGEST_BLOCK)
        if self.block < SMALLEST_BLOCK:
            raise ExportError(
                f"{weight.path}: ONNX Runtime multiplies in blocks of 16, 32, 64 or 128 inputs, which groups of {weight.group} "
                "do not hold whole; quantize with a multiple of 16"
            )
        codes, zero = weight.unsigned(self.bits)
        scale = weight.blocks(weight.scale, self.block)
        missing = -columns % self.block
        codes = torch.nn.functional.pad(codes, (0, missing)).view(out, -1, self.block)
        self.register_buffer("codes", pack_bits(codes, self.bits))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", self.zero_points(weight, zero))
        self.bias = None if bias is None else nn.Parameter(bias.detach().float())
        self.attributes = {"K": columns, "N": out, "bits": self.bits, "block_size": self.block, "accuracy_level": EXACT}

    def zero_points(self, weight: IntegerWeight, zero: Tensor) -> Tensor | None:
        """Nothing where the zero point is the middle, packed whole numbers, or real numbers."""
        if weight.symmetric:
            return None
        if weight.offset is None:
            return pack_bits(weight.blocks(zero, self.block), self.bits)
        if self.bits == 8:
            raise ExportError(
                f"{weight.path}: ONNX Runtime has no 8-bit weights with real offsets; quantize with grid: integer, or to 4 bits"
            )
        return weight.blocks(-weight.offset / weight.scale, self.block)

    def forward(self, x: Tensor) -> Tensor:
        inputs = (x.float(), self.codes, self.scale, self.zero, None, self.bias)
        while inputs[-1] is None:
            inputs = inputs[:-1]
        shape = (*x.shape[:-1], self.attributes["N"])
        return torch.onnx.ops.symbolic(OPERATOR, inputs, self.attributes, dtype=torch.float32, shape=shape, version=1)
