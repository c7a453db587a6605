"""Integer products on the processor, each with a plain counterpart that it agrees with.

| kernel             | for                                                       | computes                                             |
|--------------------|-----------------------------------------------------------|------------------------------------------------------|
| int8 onednn        | Linear, Conv2d; weights symmetric per channel or tensor   | uint8 (static) or int8 (dynamic) x int8 -> int32 ->  |
|                    | (*); static or dynamic inputs; CPU                        | float32, through oneDNN (VNNI, AMX where there is)   |
| int8 matmul        | the same, Linear only, where onednn operators are missing | `torch._int_mm`                                      |
| int4 packed        | Linear, weight-only, whole numbers of at most 4 bits (*), | `aten._weight_int4pack_mm_for_cpu`                   |
|                    | per tensor, output or group of 32, 64, 128 or 256,        |                                                      |
|                    | bfloat16 compute, at most 8 rows (slow beyond), CPU       |                                                      |
| int8 packed        | Linear, weight-only 8-bit symmetric per channel,          | `aten._weight_int8pack_mm`                           |
|                    | bfloat16 compute, at most 8 rows, CPU                     |                                                      |
| dequantize         | everything else, every device, and under autograd         | float weights for the time of one product            |

(*) Integers, and every grid whose values are whole multiples of one number, such as ternary, binary, fp4 (int8 only), powers of two
up to 4 bits and E8: -8..7 for the int4 kernel, -127..127 for the int8 ones. The int4 kernel knows real offsets too: affine grids up to 4
bits. Others (nf4, fp8, codebooks, sums of binaries) dequantize.

`prepared` forms (oneDNN's blocked layout, the int4 tile layout) are made at the first call and kept in memory beside the
stored codes; they are never part of a state_dict.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

FEW_ROWS = 8
_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside, every quantized module takes its dequantizing path: the reference that the fast ones are checked against."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def plain() -> bool:
    """Whether fast kernels are switched off, by `plain_kernels` or because a graph is being captured."""
    return _plain.get() or torch.compiler.is_compiling()


def available(name: str) -> bool:
    """Whether this torch has the operator "namespace.name"."""
    namespace, _, operator = name.partition(".")
    try:
        return hasattr(getattr(torch.ops, namespace), operator)
    except (AttributeError, RuntimeError):
        return False


def unsigned_codes(x: Tensor, scale: float, zero_point: int, high: int) -> Tensor:
    """uint8 codes clamp(round(x / s) + z, 0, high) of float32 x, by one fused pass where torch has it."""
    if hasattr(torch, "quantize_per_tensor"):
        codes = _fused_codes(x, scale, zero_point)
        return codes if high == 255 else codes.clamp_(max=high)
    return torch.round(x / scale).add_(zero_point).clamp_(0, high).to(torch.uint8)


_warned = False


def _fused_codes(x: Tensor, scale: float, zero_point: int) -> Tensor:
    global _warned
    if _warned:
        return torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()
    with warnings.catch_warnings():  # torch says once that these operators will go; the branch above is ready for that
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_tensor(x, scale, zero_point, torch.quint8).int_repr()
    _warned = True
    return codes


def signed_rows(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Dynamic symmetric codes of that many bits, one scale per first-axis entry: x (n, ...) -> codes int8 (n, ...), scale (n, 1, ...)."""
    high = 2 ** (bits - 1) - 1
    scale = x.flatten(1).abs().amax(1) / high
    scale = torch.where(scale > 0, scale.clamp(min=torch.finfo(torch.float32).tiny), torch.ones_like(scale))
    scale = scale.view(-1, *[1] * (x.dim() - 1))
    return torch.round(x / scale).clamp_(-high, high).to(torch.int8), scale


def prepare_linear(codes: Tensor, scale: Tensor) -> dict[str, Any]:
    """What `integer_linear` needs of the weights: codes int8 (out, in), scale (out,)."""
    prepared: dict[str, Any] = {"scale": scale, "zeros": torch.zeros(len(scale), dtype=torch.int64)}
    if available("onednn.qlinear_pointwise"):
        return prepared | {"blocked": torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)}
    return prepared | {"transposed": codes.t().contiguous(), "sums": codes.sum(1, dtype=torch.int64)}


def integer_linear(codes: Tensor, scale: float, zero_point: int, weight: dict[str, Any], bias: Tensor | None) -> Tensor:
    """s_x s_w (sum_k (q_x - z_x) q_w) + bias in float32.

    codes uint8 or int8 (rows, in), zero_point 0 for int8; weight from `prepare_linear`. Returns (rows, out).
    """
    if "blocked" in weight:
        return torch.ops.onednn.qlinear_pointwise(
            codes, scale, zero_point, weight["blocked"], weight["scale"], weight["zeros"], bias, 1.0, 0, torch.float32, "none", [], ""
        )  # fmt: skip
    if codes.dtype == torch.uint8:  # _int_mm multiplies signed bytes only
        codes, zero_point = (codes.to(torch.int16) - 128).to(torch.int8), zero_point - 128
    accumulated = torch._int_mm(codes, weight["transposed"]) - zero_point * weight["sums"]
    product = accumulated.float() * (scale * weight["scale"])
    return product if bias is None else product + bias


def prepare_conv(
    codes: Tensor, scale: Tensor, input_scale: float, zero_point: int, shape: dict[str, Any]
) -> dict[str, Any]:
    """What `integer_conv` needs: codes int8 (out, in / groups, kh, kw), scale (out,), `shape` with stride, padding, dilation, groups."""
    blocked = torch.ops.onednn.qconv_prepack(
        codes.contiguous(),
        scale,
        input_scale,
        zero_point,
        shape["stride"],
        shape["padding"],
        shape["dilation"],
        shape["groups"],
        None,
    )
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    return {"blocked": blocked, "scale": scale, "zeros": zeros, "input": (input_scale, zero_point), **shape}


def integer_conv(codes: Tensor, weight: dict[str, Any], bias: Tensor | None) -> Tensor:
    """Convolution of uint8 codes (B, C, H, W) with weights from `prepare_conv`; float32 (B, O, H', W'), channels last in memory."""
    scale, zero_point = weight["input"]
    return torch.ops.onednn.qconv2d_pointwise(
        codes, scale, zero_point, weight["blocked"], weight["scale"], weight["zeros"], bias, weight["stride"], weight["padding"],
        weight["dilation"], weight["groups"], 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip


def prepare_int4(codes: Tensor, scale: Tensor, center: Tensor) -> dict[str, Tensor]:
    """What `int4_linear` needs: codes 0..15 (out, in), scale and center (out, groups): w = (q - center) scale.

    The kernel computes (q - 8) scale + zero, so zero = (8 - center) scale.
    """
    tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    pairs = torch.stack([scale.float(), (8 - center.float()) * scale.float()], -1)
    return {"tiles": tiles, "pairs": pairs.transpose(0, 1).contiguous().to(torch.bfloat16)}


def int4_linear(x: Tensor, weight: dict[str, Tensor], group: int) -> Tensor:
    """x bfloat16 (rows, in) -> bfloat16 (rows, out)."""
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight["tiles"], group, weight["pairs"])
