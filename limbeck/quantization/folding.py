"""FoldBatchNorm: batch normalization of inference, absorbed by the convolution or linear layer before it.

    y = gamma (W x + b - mean) / sqrt(variance + eps) + beta
      = (g W) x + (b - mean) g + beta,    g = gamma / sqrt(variance + eps), one number per output channel

The result is exact up to rounding; the batch norm becomes nn.Identity and the layer gains a bias where it had none.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.quantization.calibration import evaluating
from limbeck.signals import Tap, call, first_tensor, to_device

KIND = "fold_batch_norm"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold every batch norm whose input is the output of one layer and of nothing else.

    With a task, one example batch runs through the model and says which batch norm read which layer's output; a pair is
    kept when folding it leaves the model's outputs as they were. Without a task the model is traced by torch.fx. A model
    without batch norms gets an empty plan. Raises UsageError when there is neither a task nor a trace.
    """

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Find the pairs; the model stays as it is."""
        if not any(type(module) in NORMS for module in model.modules()):
            return Plan(KIND, {"pairs": []})
        pairs = _pairs_by_running(model, task.example(2)) if task is not None else _pairs_by_tracing(model)
        return Plan(KIND, {"pairs": [list(pair) for pair in pairs]})


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    if type(layer) not in LAYERS or type(norm) not in NORMS or norm.running_mean is None:
        return False
    return layer.weight.shape[0] == norm.num_features


def _pairs_by_tracing(model: nn.Module) -> list[tuple[str, str]]:
    try:
        graph = torch.fx.symbolic_trace(model).graph
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be traced ({type(error).__name__}: {error}); give FoldBatchNorm a task, so that it "
            "can watch one batch instead"
        ) from error
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        once = calls[node.target] == calls[before.target] == 1
        if once and _foldable(modules[before.target], modules[node.target]):
            pairs.append((before.target, node.target))
    return pairs


def _pairs_by_running(model: nn.Module, batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Watch which batch norm reads which layer's output, then keep the pairs whose folding changes nothing else."""
    modules = {path: module for path, module in model.named_modules() if path}
    produced: dict[int, tuple[str, Tensor]] = {}
    calls: Counter[str] = Counter()
    candidates: list[tuple[str, str]] = []

    def visit(name: str, value: Tensor) -> None:
        path, _, side = name.partition(":")
        calls[path] += 1
        if not side:
            produced[id(value)] = (path, value)  # the tensor is held, so its id stays its own
        elif id(value) in produced and _foldable(modules[produced[id(value)][0]], modules[path]):
            candidates.append((produced[id(value)][0], path))

    layers = [path for path, module in modules.items() if type(module) in LAYERS]
    norms = [f"{path}:input" for path, module in modules.items() if type(module) in NORMS]
    with evaluating(model) as device, torch.no_grad(), Tap(model, layers + norms, visit):
        call(model, to_device(batch, device))
    candidates = [pair for pair in candidates if calls[pair[0]] == calls[pair[1]] == 1]
    if _harmless(model, batch, candidates):
        return candidates
    return [pair for pair in candidates if _harmless(model, batch, [pair])]


def _harmless(model: nn.Module, batch: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether folding these pairs leaves the outputs alone, on a copy whose batch norms are far from the identity."""
    trial = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(0)
    for module in trial.modules():
        if type(module) in NORMS and module.running_mean is not None:
            shift, spread = (torch.rand(module.num_features, generator=generator) for _ in range(2))
            module.running_mean.copy_(module.running_mean + (shift - 0.5) * module.running_var.cpu().sqrt())
            module.running_var.mul_((0.5 + spread).to(module.running_var.device))
    with evaluating(trial) as device, torch.no_grad():
        batch = to_device(batch, device)
        before = first_tensor(call(trial, batch)).double()
        after = first_tensor(call(apply(trial, Plan(KIND, {"pairs": [list(p) for p in pairs]})), batch)).double()
    return bool((before - after).abs().max() <= 1e-4 * before.abs().max().clamp(min=1e-6))


def fold(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out, ...) and bias (out,) of the layer that does what layer and norm did; computed in float64."""
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    start = torch.zeros_like(gain) if bias is None else bias.double()
    shifted = (start - norm.running_mean.double()) * gain
    if norm.bias is not None:
        shifted = shifted + norm.bias.double()
    folded = weight.double() * gain.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), shifted.to(weight.dtype)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Fold the pairs a plan names. Raises ArtifactError where a pair is not a layer and its batch norm."""
    for pair in plan.decisions.get("pairs", ()):
        try:
            layer, norm = (model.get_submodule(path) for path in pair)
        except (AttributeError, ValueError) as error:
            raise ArtifactError(f"the batch-norm plan names {pair!r}, which this model does not have") from error
        if not _foldable(layer, norm):
            raise ArtifactError(f"the batch-norm plan pairs {pair!r}, which are {layer} and {norm}")
        with torch.no_grad():
            weight, bias = fold(layer.weight, layer.bias, norm)
            layer.weight.copy_(weight)
            layer.bias = nn.Parameter(bias.clone(), requires_grad=layer.weight.requires_grad)
        parent, _, name = pair[1].rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    return model
