"""A quantized Limbeck model as an ONNX graph of quantize and dequantize nodes, on the very grids it was quantized to.

    quantized model --(placeholders)--> float graph with marks --(where)--> marks where integers pay --(expand)--> QDQ graph

Exporting happens in three steps, so that no tool chooses a scale again:

1. Every quantized module is replaced by one that calls placeholder operators of the domain `limbeck`: `Weight` (stored codes,
   scale, zero point) and `Grid` (this tensor is on that grid). The plan's output ranges mark module outputs with `Range`.
2. `limbeck.export.qdq_graph` decides on the float graph which marked tensors become integers, so that ONNX Runtime can fuse
   Conv, Add, pooling and matrix products into integer kernels, and ReLU into the step that follows.
3. Placeholders expand to QuantizeLinear and DequantizeLinear with the stored numbers; biases become int32 on input scale x
   weight scale, as integer kernels want them.

| module                                          | becomes                                                            |
|-------------------------------------------------|--------------------------------------------------------------------|
| static inputs, 8 bits, weights per channel      | Q/DQ inputs, DQ weights: QLinearConv, QGemm, integer MatMul        |
| dynamic inputs, Linear                          | QuantizeLinear on x / s with a scale s per token, MatMulInteger;   |
|                                                 | by_token=False: DynamicQuantizeLinear, one range per tensor        |
| weight-only                                     | DQ weights, float products (int4 groups: MatMulNBits in ORT)       |
| tables of embeddings, integers                  | int8 rows and scales, looked up; on other grids the float table    |
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.build import lineage
from limbeck.errors import ExportError, UsageError
from limbeck.plan import Plan
from limbeck.quantization.grids import PerGroup, parameter_shape
from limbeck.quantization.modules import QuantizedConv2d, QuantizedLinear, QuantizedModule
from limbeck.quantization.quantized_embedding import QuantizedEmbedding, float_table
from limbeck.quantization.replacement import replace
from limbeck.quantization.specification import DynamicRange, InputRange

OPSET = 21  # blocked and 4-bit DequantizeLinear
DOMAIN = "limbeck"


def export_qdq(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path | str,
    *,
    plan: Plan | None = None,
    dynamic: Mapping[str, Mapping[str, str]] | None = None,
    by_token: bool = True,
) -> Path:
    """Write a quantized model as a QDQ ONNX file: inputs named as the example's keys, one output `logits`.

    example   a batch of example inputs without labels
    plan      the quantize plan the model was made with; None: the newest of the model's lineage. Without its output ranges,
              convolutions give float outputs and little is gained
    dynamic   {input: {axis: name}} of the axes that may vary; None: the batch axis of every input
    by_token  whether dynamic inputs have a range per token, as in torch, or one per tensor

    Raises UsageError for a model without quantized modules and ExportError for what ONNX cannot say on these grids.
    """
    from limbeck.export.onnx import write_float
    from limbeck.export.qdq_graph import expand

    if not any(isinstance(module, QuantizedModule) for module in model.modules()):
        raise UsageError(f"{type(model).__name__} holds no quantized module: apply a quantize plan before a QDQ export")
    if not hasattr(getattr(torch.onnx, "ops", None), "symbolic"):
        raise ExportError(
            f"a QDQ export needs torch.onnx.ops.symbolic, which torch {torch.__version__} lacks: take 2.8 or newer"
        )
    plan = plan or _newest_plan(model)
    marked = with_placeholders(model, plan.decisions.get("outputs", {}) if plan else {}, by_token)
    axes = {name: {"0": "batch"} for name in example} if dynamic is None else dynamic
    path = Path(path)
    write_float(marked, example, path, opset=OPSET, dynamic=axes)
    expand(path)
    return path


def _newest_plan(model: nn.Module) -> Plan | None:
    past = lineage(model)
    plans = [plan for plan in past.plans if plan.kind == "quantize"] if past else []
    return plans[-1] if plans else None


def with_placeholders(model: nn.Module, outputs: Mapping[str, Mapping[str, Any]], by_token: bool = False) -> nn.Module:
    """A copy of the model, on the CPU in evaluation mode, whose quantized modules trace to placeholder operators; by_token: whether dynamic
    inputs have a range per token."""
    model = copy.deepcopy(model).cpu().eval()
    quantized = [(path, module) for path, module in model.named_modules() if isinstance(module, QuantizedModule)]
    for path, module in quantized:
        replace(model, path, _placeholder(path, module, by_token))
    for path, entry in outputs.items():
        try:
            module = model.get_submodule(path)
        except AttributeError as error:
            raise ExportError(
                f"the quantize plan has an output range for {path!r}, which the model does not have"
            ) from error
        if entry["bits"] == 8:  # a hook of this private copy; it goes away with it
            module.register_forward_hook(lambda _, __, y, e=entry: _mark("Range", y, e["scale"], e["zero_point"]))
    return model


def _mark(kind: str, x: Any, scale: float, zero_point: int) -> Any:
    if not isinstance(x, Tensor):
        return x
    attributes = {"scale": float(scale), "zero_point": int(zero_point)}
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{kind}", (x,), attributes, dtype=x.dtype, shape=x.shape, version=1)


def _placeholder(path: str, module: QuantizedModule, by_token: bool) -> nn.Module:
    if isinstance(module, QuantizedEmbedding):
        return _Table(module) if _Table.fits(module) else float_table(module)
    static, granularity = module.specification.input, module.specification.granularity
    if module.specification.grid is not None:
        raise ExportError(f"{path}: {module.specification.grid} has no ONNX form here; ONNX knows integer weights")
    if static is not None and static.bits != 8:
        raise ExportError(
            f"{path}: inputs of {static.bits} bits have no ONNX form here; quantize with activation_bits=8"
        )
    columns = module.matrix_shape[1]
    if isinstance(granularity, PerGroup) and columns % granularity.size:
        raise ExportError(
            f"{path}: its {columns} inputs do not divide into groups of {granularity.size}, as ONNX wants"
        )
    if isinstance(module, QuantizedLinear):
        return _Linear(module, by_token)
    if isinstance(module, QuantizedConv2d) and (static is None or isinstance(static, InputRange)):
        return _Convolution(module)
    raise ExportError(
        f"{path}: a convolution with dynamic inputs has no fast ONNX form; quantize with activations: static"
    )


class _Placeholder(nn.Module):
    """Stored tensors under their own names, and the operators that stand for them."""

    def __init__(self, module: QuantizedModule):
        super().__init__()
        self.specification = module.specification
        self.register_buffer("weight_codes", self.layout(module.codes))
        scale, zero = module.weight_scale.float(), module.packed.zero_point
        shape = parameter_shape(module.matrix_shape, self.specification.granularity)
        zero = torch.zeros(shape, dtype=self.weight_codes.dtype) if zero is None else zero
        self.register_buffer("weight_scale", self.small(scale).contiguous())
        self.register_buffer("weight_zero_point", self.small(zero).contiguous())
        self.bias = None if module.bias is None else nn.Parameter(module.bias.detach().float())

    def layout(self, codes: Tensor) -> Tensor:
        """Codes as the graph multiplies them."""
        return codes

    def small(self, parameters: Tensor) -> Tensor:
        """Scales or zero points, laid out to go with `layout`."""
        return parameters

    def grid(self, x: Tensor) -> Tensor:
        static = self.specification.input
        return _mark("Grid", x, static.scale, static.zero_point) if isinstance(static, InputRange) else x

    def weight(self, axis: int) -> Tensor:
        granularity = self.specification.granularity
        block = granularity.size if isinstance(granularity, PerGroup) else 0
        tensors = (self.weight_codes, self.weight_scale, self.weight_zero_point)
        attributes = {"axis": axis, "block_size": block, "bits": self.specification.bits}
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::Weight", tensors, attributes, dtype=torch.float32, shape=self.weight_codes.shape, version=1
        )


class _Linear(_Placeholder):
    """x W + b with W stored (in, out), as Gemm and MatMul multiply."""

    def __init__(self, module: QuantizedLinear, by_token: bool):
        super().__init__(module)
        self.register_buffer("middle", torch.tensor(128, dtype=torch.uint8))  # unsigned inputs have the fast kernels
        self.by_token = by_token

    def layout(self, codes: Tensor) -> Tensor:
        return codes.t().contiguous()

    def small(self, parameters: Tensor) -> Tensor:
        return parameters.t() if parameters.dim() == 2 else parameters

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.specification.input, DynamicRange):
            return self.dynamic(x)
        grouped = isinstance(self.specification.granularity, PerGroup)
        weight, x = self.weight(0 if grouped else 1), self.grid(x)
        if x.dim() == 2 and self.bias is not None:
            return torch.addmm(self.bias, x, weight)
        product = torch.matmul(x, weight)
        return product if self.bias is None else product + self.bias

    def dynamic(self, x: Tensor) -> Tensor:
        codes, scale, zero = self.by_its_token(x) if self.by_token else self.by_its_tensor(x)
        inputs = (codes, self.weight_codes, zero)
        shape = (*x.shape[:-1], self.weight_codes.shape[1])
        product = torch.onnx.ops.symbolic("MatMulInteger", inputs, {}, dtype=torch.int32, shape=shape, version=OPSET)
        product = product.to(torch.float32)
        # a scalar scale goes to the weights' first: ONNX Runtime fuses that
        product = product * self.weight_scale * scale if self.by_token else product * (scale * self.weight_scale)
        return product if self.bias is None else product + self.bias

    def by_its_tensor(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kinds, shapes = (torch.uint8, torch.float32, torch.uint8), (x.shape, (), ())
        return torch.onnx.ops.symbolic_multi_out(
            "DynamicQuantizeLinear", (x,), {}, dtypes=kinds, shapes=shapes, version=OPSET
        )

    def by_its_token(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `limbeck.quantization.kernels.signed_rows`, 128 added to the codes."""
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        inputs = (x / scale, torch.ones(()), self.middle)
        codes = torch.onnx.ops.symbolic("QuantizeLinear", inputs, {}, dtype=torch.uint8, shape=x.shape, version=OPSET)
        return codes, scale, self.middle


class _Table(nn.Module):
    """Integer rows (one byte a code) and their scales, looked up and multiplied in float: Gather, Cast, Mul."""

    @staticmethod
    def fits(module: QuantizedEmbedding) -> bool:
        granularity = module.specification.granularity
        whole = not isinstance(granularity, PerGroup) or module.embedding_dim % granularity.size == 0
        return module.specification.grid is None and whole

    def __init__(self, module: QuantizedEmbedding):
        super().__init__()
        rows, granularity = module.num_embeddings, module.specification.granularity
        self.groups = module.embedding_dim // granularity.size if isinstance(granularity, PerGroup) else 1
        parameters = {"scale": module.weight_scale.float(), "zero": module.packed.zero_point}
        self.register_buffer("codes", module.codes)
        for name, value in parameters.items():
            each = None if value is None else value.reshape(-1, self.groups).expand(rows, self.groups).contiguous()
            self.register_buffer(name, each)

    def forward(self, index: Tensor) -> Tensor:
        values = functional.embedding(index, self.codes).float().unflatten(-1, (self.groups, -1))
        if self.zero is not None:
            values = values - functional.embedding(index, self.zero).float().unsqueeze(-1)
        return (values * functional.embedding(index, self.scale).unsqueeze(-1)).flatten(-2)


class _Convolution(_Placeholder):
    """The convolution of the module, its weight a placeholder; grouped scales belong to the flattened weight (out, n)."""

    def __init__(self, module: QuantizedConv2d):
        self.flat = isinstance(module.specification.granularity, PerGroup)
        super().__init__(module)
        self.shape, self.weight_shape = module.shape, module.weight_shape

    def layout(self, codes: Tensor) -> Tensor:
        return codes.flatten(1) if self.flat else codes

    def forward(self, x: Tensor) -> Tensor:
        weight, shape = self.weight(1 if self.flat else 0).view(self.weight_shape), self.shape
        return functional.conv2d(
            self.grid(x), weight, self.bias, shape["stride"], shape["padding"], shape["dilation"], shape["groups"]
        )


__all__ = ["export_qdq", "with_placeholders"]
