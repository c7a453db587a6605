"""QuantizedLinear and QuantizedConv2d: modules that hold packed weights on any grid and nothing else of them.

Buffers, in this order, are exactly what is stored (`nbytes` is their sum, with the bias):

    weight_codes        as the grid lays them out: of integers int8 or uint8 (out, n), below 8 bits uint8 (out, ceil(n bits / 8));
                        n = in, or in/groups x kh x kw
    weight_scale        (), (out,) or (out, groups of n); grids with several scales have one more axis, codebooks have none
    weight_zero_point   like weight_scale, on asymmetric grids
    weight_codebook     of codebook grids
    input_scale, input_zero_point   float32 (), uint8 (): with static inputs

Which kernel runs is said by `kernel` and tabulated by `kernel_table`; see `limbeck.quantization.kernels`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from limbeck.build import weights_follow
from limbeck.quantization import kernels
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import PerChannel, PerGroup, PerTensor
from limbeck.quantization.grids import IntegerGrid
from limbeck.quantization.specification import COMPUTE, InputRange, Specification
from limbeck.quantization.straight_through import fake_quantize


def fake_quantize_rows(x: Tensor, bits: int = 8) -> Tensor:
    """Dynamic inputs in float: symmetric integers with one scale per first-axis entry, onto the grid and back; x (n, ...)."""
    _, scale = kernels.signed_rows(x.detach(), bits)
    grid = IntegerGrid(bits, signed=True, symmetric=True)
    return fake_quantize(x.flatten(1), scale.flatten(), 0, grid, PerChannel(0)).view_as(x)


class QuantizedModule(nn.Module):
    """What QuantizedLinear and QuantizedConv2d share. `weight_shape` is the shape of the float weight."""

    limbeck_quantized = True  # how other rooms know one without importing this one
    simulates_cost = False

    def __init__(self, specification: Specification, weight_shape: tuple[int, ...], bias: nn.Parameter | None):
        super().__init__()
        self.specification = specification
        self.weight_shape = tuple(weight_shape)
        device = None if bias is None else bias.device
        for name, (shape, kind) in specification.quantizer.layout(self.matrix_shape).items():
            fill = 1 if name == "scale" else 0
            self.register_buffer(f"weight_{name}", torch.full(shape, fill, dtype=kind, device=device))
        if isinstance(specification.input, InputRange):
            static = specification.input
            self.register_buffer("input_scale", torch.tensor(static.scale, dtype=torch.float32, device=device))
            self.register_buffer("input_zero_point", torch.tensor(static.zero_point, dtype=torch.uint8, device=device))
        self.register_parameter("bias", bias)
        self._prepared: tuple[Any, Any] | None = None

    @property
    def bits(self) -> float:
        """Bits per weight, without its scales."""
        return self.specification.bits

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.weight_shape[0], torch.Size(self.weight_shape[1:]).numel()

    def store(self, weight: Tensor, packed: Packed | None = None) -> None:
        """Quantize a float weight of `weight_shape` into the buffers, or hold the matrix `packed` that it was rounded to already; a
        weight without data (meta), or one that is put in afterwards, only moves them."""
        if weight.is_meta or weights_follow():
            self.to(weight.device)
            return
        if packed is None:
            packed = self.specification.encode(weight.detach().float().reshape(self.matrix_shape).contiguous())
        for name, value in packed.tensors.items():
            setattr(self, f"weight_{name}", value.to(weight.device))
        for name in ("input_scale", "input_zero_point"):
            if hasattr(self, name):
                setattr(self, name, getattr(self, name).to(weight.device))

    @property
    def packed(self) -> Packed:
        """The stored weight matrix."""
        scale, zero, book = (getattr(self, f"weight_{name}", None) for name in ("scale", "zero_point", "codebook"))
        return Packed(self.weight_codes, scale, zero, self.matrix_shape, book)

    def verify(self) -> None:
        """Raise ArtifactError for stored tensors that quantizing cannot have made; tensors without data (meta) are not looked at."""
        if not self.weight_codes.is_meta:
            self.specification.quantizer.check(self.packed)

    @property
    def weight(self) -> Tensor:
        """The float32 weight that the codes stand for, in the shape of the original."""
        return self.specification.quantizer.decode(self.packed).view(self.weight_shape)

    @property
    def codes(self) -> Tensor:
        """Unpacked codes, int8 or uint8, in the shape of the original weight where there is one for each."""
        codes = self.specification.quantizer.codes(self.packed)
        return codes.view(self.weight_shape) if codes.numel() == torch.Size(self.weight_shape).numel() else codes

    @property
    def whole_numbers(self) -> Tensor:
        """The weights as int8 multiples of `_channel_scale`, in the shape of the original weight."""
        return self.specification.quantizer.grid.whole_numbers(self.packed).view(self.weight_shape).contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: codes, scales, zero points, bias."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the plain path sees it: on its grid and back, float32."""
        inputs = self.specification.input
        if isinstance(inputs, InputRange):
            return fake_quantize(x, self.input_scale, self.input_zero_point, inputs.grid, PerTensor())
        return x.float() if inputs is None else fake_quantize_rows(x.float(), inputs.bits)

    def prepared(self, make) -> Any:
        """The kernel's own form of the stored tensors, made again whenever one of them changed."""
        key = tuple(
            (t.data_ptr(), 0 if t.is_inference() else t._version) for t in self._buffers.values() if t is not None
        )
        if self._prepared is None or self._prepared[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._prepared = (key, make())
        return self._prepared[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}  # opaque layouts can be neither copied nor sent

    def _channel_scale(self) -> Tensor:
        unit = self.specification.quantizer.grid.whole[0]
        return (unit * self.weight_scale.detach().float()).expand(self.weight_shape[0]).contiguous()

    def _integer_kernel_fits(self) -> bool:
        return self.specification.integer_product and self.weight_codes.device.type == "cpu"

    def _fast(self, x: Tensor) -> bool:
        return not (kernels.plain() or (torch.is_grad_enabled() and x.requires_grad)) and x.numel() > 0


class QuantizedLinear(QuantizedModule):
    """A linear layer with packed weights: x (..., in) -> (..., out) in the type of x."""

    def __init__(self, in_features: int, out_features: int, bias: nn.Parameter | None, specification: Specification):
        super().__init__(specification, (out_features, in_features), bias)
        self.in_features, self.out_features = in_features, out_features

    @property
    def kernel(self) -> str:
        """The kernel that few rows take: "int8 onednn", "int8 matmul", "int4 packed", "int8 packed" or "dequantize"."""
        s = self.specification
        if self._integer_kernel_fits():
            return "int8 onednn" if kernels.available("onednn.qlinear_pointwise") else "int8 matmul"
        if s.input is None and s.compute == "bfloat16" and self.weight_codes.device.type == "cpu":
            if s.int4_group(self.in_features) and self.out_features % 16 == 0:
                return "int4 packed" if kernels.available("aten._weight_int4pack_mm_for_cpu") else "dequantize"
            if s.grid is None and s.bits == 8 and s.symmetric and not isinstance(s.granularity, PerGroup):
                return "int8 packed" if kernels.available("aten._weight_int8pack_mm") else "dequantize"
        return "dequantize"

    def forward(self, x: Tensor) -> Tensor:
        rows, kernel = x.reshape(-1, self.in_features), self.kernel if self._fast(x) else "dequantize"
        if kernel in ("int8 onednn", "int8 matmul"):
            out = self._integer(rows.float())
        elif kernel in ("int4 packed", "int8 packed") and len(rows) <= kernels.FEW_ROWS:
            out = self._packed(rows.to(torch.bfloat16), kernel)
        else:
            out = self._plain(rows)
        return out.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _plain(self, rows: Tensor) -> Tensor:
        compute = COMPUTE[self.specification.compute]
        bias = None if self.bias is None else self.bias.to(compute)
        return functional.linear(self.quantized_input(rows).to(compute), self.weight.to(compute), bias)

    def _integer(self, rows: Tensor) -> Tensor:
        weight = self.prepared(lambda: kernels.prepare_linear(self.whole_numbers, self._channel_scale()))
        static = self.specification.input
        bias = None if self.bias is None else self.bias.detach().float()
        if isinstance(static, InputRange):
            scale, zero = self.input_scale.item(), self.input_zero_point.item()
            codes = kernels.unsigned_codes(rows.detach(), scale, zero, static.grid.high)
            return kernels.integer_linear(codes, scale, zero, weight, bias)
        codes, scale = kernels.signed_rows(rows.detach(), static.bits)
        out = kernels.integer_linear(codes, 1.0, 0, weight, None).mul_(scale)
        return out if bias is None else out.add_(bias)

    def _packed(self, rows: Tensor, kernel: str) -> Tensor:
        if kernel == "int4 packed":
            out = kernels.int4_linear(rows, self.prepared(self._int4), self.specification.int4_group(self.in_features))
        else:
            scale = self.prepared(lambda: self._channel_scale().to(torch.bfloat16))
            out = torch.ops.aten._weight_int8pack_mm(rows, self.weight_codes, scale)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _int4(self) -> dict[str, Tensor]:
        s, zero = self.specification, self.packed.zero_point
        scale = self.weight_scale.detach().float()
        if not isinstance(s.granularity, PerGroup):  # the kernel knows groups only
            shape = (self.out_features, self.in_features // s.int4_group(self.in_features))
            scale = scale.reshape(-1, 1).expand(shape)
            zero = None if zero is None else zero.reshape(-1, 1).expand(shape)
        grid = s.quantizer.grid
        if isinstance(grid, AffineGrid):  # s q + o = s (q + m - (m - o / s)), with codes around the kernel's middle, 8
            middle = 8 - 2 ** (grid.bits - 1)
            return kernels.prepare_int4(self.codes.int() + middle, scale, middle - zero.float() / scale)
        if zero is not None:
            return kernels.prepare_int4(self.codes, scale, zero)
        if grid.whole is None:  # unsigned with the zero point in the middle
            return kernels.prepare_int4(self.codes, scale, torch.full_like(scale, grid.center))
        scale = scale * grid.whole[0]
        return kernels.prepare_int4(self.whole_numbers.to(torch.int32) + 8, scale, torch.full_like(scale, 8))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.specification.bits}, kernel={self.kernel!r}"


class QuantizedConv2d(QuantizedModule):
    """A convolution with packed weights: x (B, C, H, W) -> (B, O, H', W') in the type of x."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        shape: dict[str, Any],
        bias: nn.Parameter | None,
        specification: Specification,
    ):
        super().__init__(specification, weight_shape, bias)
        self.stride, self.padding = tuple(shape["stride"]), tuple(shape["padding"])
        self.dilation, self.groups = tuple(shape["dilation"]), int(shape["groups"])
        self.kernel_size = self.weight_shape[2:]
        self.out_channels, self.in_channels = self.weight_shape[0], self.weight_shape[1] * self.groups

    @property
    def shape(self) -> dict[str, Any]:
        """stride, padding, dilation and groups."""
        lists = {name: list(getattr(self, name)) for name in ("stride", "padding", "dilation")}
        return {**lists, "groups": self.groups}

    @property
    def kernel(self) -> str:
        """ "int8 onednn" or "dequantize"."""
        fits = self._integer_kernel_fits() and kernels.available("onednn.qconv2d_pointwise")
        return "int8 onednn" if fits else "dequantize"

    def forward(self, x: Tensor) -> Tensor:
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        fast = self._fast(x) and self.kernel == "int8 onednn"
        out = (self._integer(batch) if fast else self._plain(batch)).to(x.dtype)
        return out if x.dim() == 4 else out.squeeze(0)

    def _plain(self, x: Tensor) -> Tensor:
        compute = COMPUTE[self.specification.compute]
        bias = None if self.bias is None else self.bias.to(compute)
        weight, x = self.weight.to(compute), self.quantized_input(x).to(compute)
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _integer(self, x: Tensor) -> Tensor:
        static, values = self.specification.input, x.detach().float()
        bias = None if self.bias is None else self.bias.detach().float()
        if isinstance(static, InputRange):
            weight = self.prepared(lambda: self._conv(self.input_scale.item(), self.input_zero_point.item()))
            out = kernels.integer_conv(kernels.unsigned_codes(values, *weight["input"], static.grid.high), weight, bias)
        else:
            weight = self.prepared(lambda: self._conv(1.0, 128))
            codes, scale = kernels.signed_rows(values, static.bits)
            out = kernels.integer_conv((codes.to(torch.int16) + 128).to(torch.uint8), weight, None).mul_(scale)
            out = out if bias is None else out.add_(bias.view(1, -1, 1, 1))
        keep = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        return out if keep else out.contiguous()

    def _conv(self, scale: float, zero_point: int) -> dict[str, Any]:
        return kernels.prepare_conv(self.whole_numbers, self._channel_scale(), scale, zero_point, self.shape)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, bits={self.specification.bits}, kernel={self.kernel!r}"


def kernel_table(model: nn.Module) -> dict[str, str]:
    """Which kernel every quantized module of a model uses: {path: kernel}."""
    return {path: module.kernel for path, module in model.named_modules() if isinstance(module, QuantizedModule)}
