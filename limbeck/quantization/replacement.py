"""Which modules have a quantized form, and how it takes their place in a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.pruning.slicing import is_conv1d
from limbeck.quantization.contract import Packed
from limbeck.quantization.modules import QuantizedConv2d, QuantizedLinear, QuantizedModule
from limbeck.quantization.quantized_embedding import QuantizedEmbedding
from limbeck.quantization.specification import Specification


def why_not(module: nn.Module) -> str | None:
    """Why a module with weights cannot be quantized here, or None when it can."""
    kind = type(module)
    if isinstance(module, QuantizedModule):
        return "it is quantized already"
    if kind is not nn.Linear and kind is not nn.Conv2d and not is_conv1d(module):
        fused = any(weight.dim() == 3 for weight in module.parameters(recurse=False))
        hint = "; SplitExperts of limbeck.conversion gives experts linear layers of their own" if fused else ""
        hint = "; QuantizeEmbeddings is for tables" if kind is nn.Embedding else hint
        return f"a {kind.__name__} stays in float{hint}"
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding mode {module.padding_mode!r}"
        if padding_of(module) is None:
            return "its 'same' padding is not symmetric"
    return _without_numbers(module.weight)


def _without_numbers(weight: Tensor) -> str | None:
    if weight.numel() == 0 or (not weight.is_meta and not torch.isfinite(weight).all()):
        return "its weight is empty or holds NaN or infinity"
    return None


def why_not_table(module: nn.Module) -> str | None:
    """Why an embedding cannot be quantized, or None when it can."""
    if type(module) is not nn.Embedding:
        return f"a {type(module).__name__} is no plain table"
    if module.max_norm is not None:
        return "max_norm changes its rows when they are read"
    if module.weight.dtype not in (torch.float32, torch.bfloat16):
        return f"its rows are {str(module.weight.dtype).removeprefix('torch.')}, not float32 or bfloat16"
    return _without_numbers(module.weight)


def padding_of(module: nn.Conv2d) -> tuple[int, ...] | None:
    """Padding as numbers; None for a 'same' that would need more on one side."""
    if module.padding == "valid":
        return (0, 0)
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return tuple(module.padding)


def float_weight_of(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight of `module` as a quantized module holds it: (out, in) or (out, in / groups, kh, kw)."""
    return weight.t() if is_conv1d(module) else weight


def quantized(module: nn.Module, specification: Specification, packed: Packed | None = None) -> QuantizedModule:
    """The quantized module that replaces a float one; its bias is the same Parameter. packed: its weight matrix, where that was
    rounded already."""
    if isinstance(module, nn.Embedding):
        table = QuantizedEmbedding(*module.weight.shape, specification, module.padding_idx)
        table.store(module.weight, packed)
        return table.train(module.training)
    weight, bias = float_weight_of(module, module.weight), module.bias
    if isinstance(module, nn.Conv2d):
        shape = {
            "stride": module.stride,
            "padding": padding_of(module),
            "dilation": module.dilation,
            "groups": module.groups,
        }
        made: QuantizedModule = QuantizedConv2d(tuple(weight.shape), shape, bias, specification)
    else:
        made = QuantizedLinear(weight.shape[1], weight.shape[0], bias, specification)
    made.store(weight, packed)
    return made.train(module.training)


def replace(model: nn.Module, path: str, made: nn.Module) -> None:
    """Put `made` wherever the module at `path` is in the model."""
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = made
