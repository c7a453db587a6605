"""Tuning of codes: a quantized model is trained as it is, codes and real numbers, from a quantized start.

    plan = Quantize(grid="kmeans", ...).plan(model)
    tune_codes(model, plan) -> Trainer.run(TuneCodes(model, teacher, SoftTargets(temperature=1)), task) -> model, plan = finish_codes(model)
        -> apply(model, plan)

The dequantized weight W of a layer depends on codes and on continuous tables (codebook, or scales and offsets). Two kinds of steps,
both in every training step, as in the published recipe:

    P   codes fixed: codebooks, scales and all parameters that are not quantized move by their exact gradients (the Trainer's optimizer)
    V   tables fixed: a latent weight takes an optimizer's step L <- L - rate g / (sqrt(v) + eps) with g = dL/dW, and only the part
        `share` of the code groups with the largest ||L - W|| get a new code, the nearest to L; all others keep theirs

    keep=True    the latent weight goes on from step to step and codes follow it (PV with a straight-through buffer, the released recipe)
    keep=False   the latent weight is set back to W after every step (pure PV)
    share=1      with keep: plain straight-through training;   share=0: P alone

The step of a few codes is larger than that of all, so that it really changes them, while the change of the weight as a whole stays small:
the linearization of the loss around W holds. Source: Malinovskii et al., "PV-Tuning", NeurIPS 2024, algorithms 1 and 2 and section 3.2, and the
authors' public code for g's second moment (no first moment, decay 0.95, bias-corrected). Not here: beam search over several codebooks (codes are
nearest exactly where there is one), the bound on the relative change of a layer, stochastic rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives.base import Objective
from limbeck.plan import Plan
from limbeck.quantization.contract import SCALE_TYPES, Packed
from limbeck.quantization.hessian import write_matrix
from limbeck.quantization.quantize import entries
from limbeck.quantization.replacement import float_weight_of, padding_of, replace
from limbeck.quantization.rounding import to_text
from limbeck.quantization.specification import Specification
from limbeck.training.procedures import Distil, State

DECAY, EPS = 0.95, 1e-8
TABLES = ("scale", "zero_point", "codebook")
_PLAN = "_limbeck_code_plan"


class Coded(nn.Module):
    """A Linear, Conv1D or Conv2d that computes with codes and tables; floating-point tables are Parameters.

    Buffers: codes as they are stored, whole-numbered tables, the latent weight (out, n), the second moment of its gradient, its steps.
    """

    def __init__(self, module: nn.Module, specification: Specification):
        super().__init__()
        self.quantizer = specification.quantizer
        weight = float_weight_of(module, module.weight).detach().float()
        self.shape, matrix = weight.shape, weight.flatten(1)
        self._original = [module]  # in a list: no child
        packed = specification.encode(matrix)
        for name, value in packed.tensors.items():
            if value.is_floating_point():
                setattr(self, name, nn.Parameter(value.float()))
            else:
                self.register_buffer(name, value)
        self.bias = module.bias
        # training may not carry a scale through 0: codes would change their meaning
        self.least = None if packed.scale is None else 1e-3 * packed.scale.float().abs().mean().item()
        self.register_buffer("latent", self.quantizer.decode(packed))
        self.register_buffer("moment", torch.zeros_like(self.latent))
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))
        self.gradient: Tensor | None = None

    @property
    def packed(self) -> Packed:
        tables = {name: getattr(self, name, None) for name in TABLES}
        return Packed(self.codes, tables["scale"], tables["zero_point"], tuple(self.latent.shape), tables["codebook"])

    @property
    def matrix(self) -> Tensor:
        """W (out, n), differentiable in the tables."""
        return self.quantizer.decode(self.packed)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.matrix
        if weight.requires_grad:
            weight.register_hook(self._collect)
        module = self._original[0]
        weight = weight.view(self.shape).to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, weight, bias, module.stride, padding_of(module), module.dilation, module.groups)
        return F.linear(x, weight, bias)

    def _collect(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach() if self.gradient is None else self.gradient + gradient.detach()

    @torch.no_grad()
    def move(self, rate: float, share: float, keep: bool) -> int:
        """One V step from the gradients seen since the last one; returns how many groups got another code. Scales that the P step made
        smaller than a thousandth of what they were on average are raised to it."""
        gradient, self.gradient = self.gradient, None
        if self.least is not None:
            self.scale.clamp_(min=self.least)
        now = self.matrix
        if gradient is None or share == 0:
            return 0
        self.moves += 1
        self.moment.mul_(DECAY).add_(gradient.square(), alpha=1 - DECAY)
        size = (self.moment / (1 - DECAY ** self.moves.item())).sqrt_().add_(EPS)
        if not keep:
            self.latent.copy_(now)
        self.latent.sub_(rate * gradient / size)
        codes = self.quantizer.codes(self.packed)
        chosen = largest(self.latent - now, codes.shape[-1], share)
        new = self.quantizer.project(torch.where(chosen, self.latent, now), self.packed)
        changed = (self.quantizer.codes(new) != codes).sum().item()
        self.codes.copy_(new.codes)
        return int(changed)

    def stored(self, specification: Specification) -> Packed:
        """What is stored in the end: tables in their own type."""
        kind = SCALE_TYPES[specification.scale_type]
        tables = {
            name: value.detach().to(kind) if value.is_floating_point() else value
            for name, value in self.packed.tensors.items()
            if name != "codes"
        }
        return Packed(
            self.codes, tables.get("scale"), tables.get("zero_point"), tuple(self.latent.shape), tables.get("codebook")
        )

    def restored(self) -> nn.Module:
        """The float module, its weight the dequantized one."""
        module = self._original[0]
        write_matrix(module, self.matrix)
        module.bias = self.bias
        return module.train(self.training)


def largest(difference: Tensor, groups: int, share: float) -> Tensor:
    """Which elements belong to the part `share` of the code groups with the largest norms of difference (out, n): bool (out, n).

    groups: codes a row has, each for ceil(n / groups) consecutive elements; at least one group of the matrix is chosen.
    """
    rows, count = difference.shape
    size = -(-count // groups)
    norms = F.pad(difference, (0, groups * size - count)).unflatten(1, (groups, size)).square().sum(2)
    chosen = torch.zeros_like(norms, dtype=torch.bool).flatten()
    chosen[norms.flatten().topk(max(1, int(share * norms.numel()))).indices] = True
    return chosen.view(rows, groups).repeat_interleave(size, 1)[:, :count]


def tune_codes(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace every module a weight-only quantization plan names by its coded form, in place, and return the model.

    Raises UsageError for a model that is prepared already, plans with inputs on a grid, and plans whose data say the codes.
    """
    if getattr(model, _PLAN, None) is not None:
        raise UsageError("this model's codes are being tuned already: call finish_codes first")
    found = entries(model, plan)
    if not found or "data" in plan.decisions or any(specification.input is not None for _, _, specification in found):
        raise UsageError(
            "codes are tuned from a weight-only plan (activations: null) that rounds to the nearest and names some module"
        )
    for path, module, specification in found:
        replace(model, path, Coded(module, specification))
    object.__setattr__(model, _PLAN, plan)
    return model


def finish_codes(model: nn.Module) -> tuple[nn.Module, Plan]:
    """Undo `tune_codes`, in place: the float model with dequantized weights, and the plan that stores codes and tables as they are."""
    plan = getattr(model, _PLAN, None)
    coded = {path: module for path, module in model.named_modules() if isinstance(module, Coded)}
    if plan is None or not coded:
        raise UsageError("no codes of this model are being tuned: call tune_codes first")
    weights = {}
    for path, module, specification in entries(model, plan, ("Coded",)):
        weights[path] = to_text(module.stored(specification))
        replace(model, path, module.restored())
    object.__delattr__(model, _PLAN)
    decisions = dict(plan.decisions) | {"rounding": {"method": "tune_codes"}, "data": {"weights": weights}}
    return model, Plan(plan.kind, decisions)


class TuneCodes(Distil):
    """Distil a quantized student from its float original while its codes are tuned; see the module.

    student: prepared by `tune_codes`. teacher, objective: as in `Distil`; of the paper the original and SoftTargets(temperature=1).
    rate: of the V step, which falls to 0 by a cosine over the run. share: the part of code groups that may change in one step; keep: see
    the module. `changes` counts codes changed in the last step. Raises UsageError for settings out of range and a student without codes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        objective: Objective,
        rate: float = 1e-2,
        share: float = 0.01,
        keep: bool = True,
    ):
        super().__init__(student, teacher, objective)
        if not 0 < rate < float("inf") or not 0 <= share <= 1:
            raise UsageError(f"rate={rate!r}, share={share!r}: rate must be above 0 and share in [0, 1]")
        self.coded = [module for module in student.modules() if isinstance(module, Coded)]
        if not self.coded:
            raise UsageError("the student has no codes: call tune_codes first")
        self.rate, self.share, self.keep, self.changes = rate, share, keep, 0

    def after_step(self, state: State) -> None:
        super().after_step(state)
        progress = state.step / max(1, state.steps)
        rate = self.rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
        self.changes = sum(module.move(rate, self.share, self.keep) for module in self.coded)

    def describe(self) -> Any:
        return {**super().describe(), "rate": self.rate, "share": self.share, "keep": self.keep}
