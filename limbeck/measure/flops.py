"""FLOPs of one forward pass. A multiply-add counts as two; only matrix products, convolutions and attention are counted.

torch's own FlopCounterMode counts the tensor operations that run; what it does not know (attention on the CPU, integer
products, matrix-vector products) is added here. A quantized module is counted from its shapes as the product it stands
for, whatever kernel carries it out, so that int8 and float32 forms of one architecture have the same FLOPs.
Not counted: fused recurrent kernels (LSTM, GRU), normalization, activations, and other element-wise work.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from limbeck.measure.base import Measurement
from limbeck.measure.latency import device_of, evaluating
from limbeck.measure.size import is_packed
from limbeck.signals import call, first_tensor, to_device


def _product(a, b, *_, **__) -> int:
    """(m, k) x (k, n): 2 m k n."""
    return 2 * a[0] * a[1] * b[1]


def _matrix_vector(a, b, *_, **__) -> int:
    """(m, k) x (k,): 2 m k."""
    return 2 * a[0] * a[1]


def _added_matrix_vector(_bias, a, b, *_, **__) -> int:
    return 2 * a[0] * a[1]


def _dot(a, *_, **__) -> int:
    return 2 * a[0]


def _attention(query, key, value, *_, **__) -> int:
    """(B, H, q, d) x (B, H, k, d) and (B, H, q, k) x (B, H, k, v): 2 B H q k (d + v)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[-2] * (width + value[-1])


def _extra_operations() -> dict[Any, Any]:
    known = {
        "_int_mm": _product,
        "mv": _matrix_vector,
        "addmv": _added_matrix_vector,
        "dot": _dot,
        "vdot": _dot,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
    }
    return {getattr(torch.ops.aten, name): f for name, f in known.items() if hasattr(torch.ops.aten, name)}


def module_flops(module: nn.Module, output: Tensor) -> int:
    """FLOPs a linear or convolution module stands for, from its sizes and its output: 2 x output elements x fan-in."""
    if hasattr(module, "in_features"):
        return 2 * output.numel() * module.in_features
    if hasattr(module, "in_channels"):
        return 2 * output.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    return 0  # an embedding only looks up


def count_flops(model: nn.Module, batch: Any) -> int:
    """FLOPs of one forward pass over a batch, in evaluation mode."""
    counter, extra, entered = FlopCounterMode(display=False, custom_mapping=_extra_operations()), [], {}

    def before(module, _args):
        entered[module] = counter.get_total_flops()

    def after(module, _args, output):
        counted_inside = counter.get_total_flops() - entered.pop(module)
        extra.append(module_flops(module, first_tensor(output)) - counted_inside)

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if is_packed(module):
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(_unfused_attention())
        stack.enter_context(evaluating(model))
        with counter:
            call(model, batch)
    return counter.get_total_flops() + sum(extra)


@contextlib.contextmanager
def _unfused_attention():
    """torch's fused transformer-layer kernel is opaque to the counter: run the same layer from its parts."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def flops(model: nn.Module, task: Any, batch_size: int = 1) -> Measurement:
    """`flops` of one forward pass on the task's example inputs."""
    batch = to_device(task.example(batch_size), device_of(model))
    settings = {"batch_size": batch_size, "multiply_add": 2}
    return Measurement("flops", count_flops(model, batch), unit="FLOPs", where="torch", settings=settings)
