"""Experts of transformers, whose weights are one tensor each, as linear layers of their own: what quantizes, prunes or factorizes
linear layers then reaches them.

    gate_up_proj (E, 2 I, H), down_proj (E, H, I)   ->   E times Linear(H, 2 I), Linear(I, H)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.signals import match_paths

KIND = "split_experts"
NAMES = {"gate_up_proj", "up_proj", "down_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj_bias"}
SIGNS = ("has_bias", "is_transposed")


@dataclass(frozen=True)
class SplitExperts:
    """Give every expert of a mixture of experts of transformers its own two linear layers; what the model computes stays.

    only, ignore: patterns of module paths.

    Mixtures of transformers (Mixtral, Qwen, OLMoE, DeepSeek, gpt-oss, ...) hold the weights of all experts of a layer in two tensors, which
    nothing that works on linear layers finds. The new module has `experts.<number>.up` (gate and up projection in one, as there)
    and `experts.<number>.down`. An expert computes the tokens that chose it and no others.
    Raises UsageError where a model has no such experts. Export to a folder of transformers must come before.
    """

    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("only", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Needs no data; the model stays as it is."""
        wanted = {path for pattern in self.only for path in match_paths(model, pattern)}
        wanted -= {path for pattern in self.ignore for path in match_paths(model, pattern)}
        paths = [path for path, module in model.named_modules() if path in wanted and is_fused(module)]
        if not paths:
            raise UsageError(
                f"SplitExperts: {type(model).__name__} has no experts whose weights are one tensor (those of transformers' mixtures)"
            )
        return Plan(KIND, {"paths": paths})


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds experts as transformers' mixtures do: 3-D weights by those names, and how they are laid out."""
    own = dict(module.named_parameters(recurse=False))
    first = "gate_up_proj" if getattr(module, "has_gate", None) else "up_proj"
    fused = {first, "down_proj"} <= set(own) <= NAMES and all(own[name].dim() == 3 for name in (first, "down_proj"))
    rule = "_apply_gate" if first == "gate_up_proj" else "act_fn"
    return fused and all(hasattr(module, name) for name in (*SIGNS, rule))


class LinearExperts(nn.Module):
    """sum over the chosen experts of w_i down_i(gate(up_i(x))), called as transformers calls its own:
    hidden states (N, H), indices (N, top), weights (N, top) -> (N, H)."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        first = "gate_up_proj" if fused.has_gate else "up_proj"
        up, down = getattr(fused, first), fused.down_proj
        biases = [getattr(fused, f"{name}_bias") if fused.has_bias else None for name in (first, "down_proj")]
        self.experts = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: _linear(weight[index], None if bias is None else bias[index], fused.is_transposed)
                    for name, weight, bias in zip(("up", "down"), (up, down), biases)
                }
            )
            for index in range(len(up))
        )
        self.rule = _without_weights(fused)
        self.train(fused.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self.experts):
            row, place = (top_k_index == index).nonzero(as_tuple=True)
            if not len(row):
                continue
            inner = expert["up"](hidden_states[row])
            inner = self.rule._apply_gate(inner) if self.rule.has_gate else self.rule.act_fn(inner)
            inner = expert["down"](inner)
            if getattr(self.rule, "has_post_expert_norm", False):
                inner = self.rule.post_expert_norm(inner)
            out = out.index_add(0, row, (inner * top_k_weights[row, place, None]).to(out.dtype))
        return out


def _linear(weight: Tensor, bias: Tensor | None, transposed: bool) -> nn.Linear:
    weight = weight.t() if transposed else weight
    made = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias=bias is not None, device="meta")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            own = value.detach().clone(memory_format=torch.contiguous_format)
            setattr(made, name, nn.Parameter(own, requires_grad=value.requires_grad))
    return made


def _without_weights(fused: nn.Module) -> nn.Module:
    """A copy that knows how gates are applied, and holds none of the experts' weights."""
    own = dict(fused.named_parameters(recurse=False))
    made = copy.copy(fused)
    made._parameters = {name: value for name, value in fused._parameters.items() if name not in own}
    made._modules, made._buffers = dict(fused._modules), dict(fused._buffers)
    return made


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Replay the plan. Raises ArtifactError for a path without such experts."""
    for path in plan.decisions["paths"]:
        try:
            fused = model.get_submodule(path)
        except AttributeError as error:
            raise ArtifactError(f"the plan splits {path!r}, which {type(model).__name__} does not have") from error
        if not is_fused(fused):
            raise ArtifactError(f"the plan splits {path!r}, a {type(fused).__name__} without experts in one tensor")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, LinearExperts(fused))
    return model
