"""The float form of a quantized model: plain tensors, and plain modules, with the weights that its codes stand for."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from limbeck.errors import ExportError
from limbeck.pruning.slicing import is_conv1d
from limbeck.quantization.modules import QuantizedLinear, QuantizedModule
from limbeck.quantization.quantized_embedding import QuantizedEmbedding, float_table
from limbeck.quantization.replacement import replace


def float_weights(model: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """The model's state as plain float tensors, quantized modules by the weights their codes stand for, and whether there are any."""
    found: dict[str, Tensor] = {}
    quantized = False
    for path, module in model.named_modules():
        if getattr(module, "limbeck_quantized", False):
            quantized = True
            found[f"{path}.weight"] = module.weight.detach()
            if module.bias is not None:
                found[f"{path}.bias"] = module.bias.detach()
        else:
            persistent = module._non_persistent_buffers_set
            own = {**module._parameters, **{k: v for k, v in module._buffers.items() if k not in persistent}}
            found |= {f"{path}.{key}" if path else key: v.detach() for key, v in own.items() if v is not None}
    return {key: value.cpu().contiguous() for key, value in found.items()}, quantized


def skeleton(model: nn.Module) -> nn.Module:
    """The float architecture of a transformers model, without weights: what its config describes, cut where a plan cut it.

    Raises ExportError when no config describes the model.
    """
    from limbeck.export.transformers_folder import fitting_config, in_the_way

    config = fitting_config(model, float_shapes(model))
    if config is None:
        raise ExportError(in_the_way(model))
    with torch.device("meta"):
        return type(model)(copy.deepcopy(config))


def float_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model's float form. The transposed weights of Conv1D are told by the model's own config."""
    from limbeck.export.transformers_folder import shapes_of

    shapes = shapes_of(model)
    quantized = {path: module for path, module in model.named_modules() if isinstance(module, QuantizedModule)}
    if not quantized:
        return shapes
    with torch.device("meta"):
        plain = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    for path, module in quantized.items():
        for name in module.state_dict():
            if name != "bias":
                del shapes[f"{path}.{name}"]
        transposed = path in plain and is_conv1d(plain[path])
        shapes[f"{path}.weight"] = module.weight_shape[::-1] if transposed else module.weight_shape
    return shapes


def float_state(model: nn.Module, plain: nn.Module) -> dict[str, Tensor]:
    """The weights of the float form as `plain` (a skeleton) holds them, with one name for tensors that are shared."""
    modules, found, names = dict(plain.named_modules()), {}, set()
    for name, tensor in float_weights(model)[0].items():
        path = name.rpartition(".")[0]
        transposed = name.endswith(".weight") and is_conv1d(modules.get(path)) and _is_quantized(model, path)
        found[name] = tensor.t().contiguous() if transposed else tensor
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in found and id(parameter) in names:
            del found[name]
        names.add(id(parameter))
    return found


def _is_quantized(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path), QuantizedModule)


def with_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model whose quantized linear layers are float ones with these weights (out, in), by path, and whose tables are float."""
    made = copy.deepcopy(model)
    for path, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding):
            replace(made, path, float_table(module))
        elif isinstance(module, QuantizedLinear):
            weight = weights[path]
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
            linear.weight = nn.Parameter(weight.float(), requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
            replace(made, path, linear.train(module.training))
    return made
