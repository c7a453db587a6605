"""Sparsify: single weights set to zero, anywhere or two in every four (2:4).

The tensors stay dense: a masked model has the size and the speed it had, and nothing here claims otherwise. The gain comes with
a format or kernel that uses the zeros (2:4 tensor cores, compressed storage).

Training on: an optimizer moves zeros, also through momentum. Whoever trains a masked model says
`MaskKeeper(model).follow(procedure)` before the run; a loop of one's own calls the keeper after every optimizer step. The keeper
reads the masks from the zeros themselves, so it needs no plan, and works on a resumed or later pruned model.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.build import lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.pruning.importance import Context, Magnitude, Scorer, Statistics, measure
from limbeck.pruning.slicing import is_conv1d
from limbeck.signals import match_paths


@dataclass(frozen=True)
class Sparsify:
    """Zeros in the weights of linear layers and convolutions; biases, norms and embeddings are not touched.

    sparsity  the fraction of the weights that becomes zero, in [0, 1)
    pattern   "unstructured", or "2:4": exactly two zeros in every four neighbours along the input axis (sparsity must be 0.5;
              layers whose input axis is no multiple of four are left alone)
    scope     for "unstructured": "global" ranks all weights together, "layer" within a layer, "row" within an output (Wanda).
              Scores are compared as they are: every item is one weight.
    scorer    Magnitude(), Taylor(), ActivationNorm() (with scope "row": Wanda), Random()
    paths, ignore   path patterns of the modules to take and to leave

    Raises UsageError for a sparsity outside [0, 1), unknown patterns, and where no weight is left to mask.
    """

    sparsity: float = 0.5
    pattern: str = "unstructured"
    scope: str = "global"
    scorer: Scorer = field(default_factory=Magnitude)
    paths: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.sparsity, bool) or not 0 <= self.sparsity < 1:
            raise UsageError(
                f"Sparsify: sparsity must lie in [0, 1), not {self.sparsity!r}: at 1 nothing would be kept"
            )
        if self.pattern not in ("unstructured", "2:4"):
            raise UsageError(f"Sparsify: pattern must be 'unstructured' or '2:4', not {self.pattern!r}")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise UsageError(f"Sparsify: pattern 2:4 has sparsity 0.5, not {self.sparsity!r}")
        if self.scope not in ("global", "layer", "row"):
            raise UsageError(f"Sparsify: scope must be 'global', 'layer' or 'row', not {self.scope!r}")
        for name in ("paths", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide which weights become zero. The model is left as it was found."""
        modules, left = self._targets(model)
        if not modules:
            raise UsageError(f"Sparsify: no weight of {type(model).__name__} can be masked: {left}")
        statistics = measure(model, task, self.scorer, list(modules))
        if "inputs" in self.scorer.needs:
            for path in [path for path in modules if path not in statistics.inputs]:
                left[path] = "it was not called on the calibration data"
                del modules[path]
        scores = {path: weight_scores(path, module, self.scorer, statistics) for path, module in modules.items()}
        if self.pattern == "2:4":
            masks = {path: two_of_four(s, input_axis(modules[path])) for path, s in scores.items()}
        else:
            masks = lowest(scores, self.sparsity, self.scope, {p: output_axis(m) for p, m in modules.items()})
        return Plan(
            "mask",
            {
                "pattern": self.pattern,
                "paths": {
                    path: {"elements": mask.numel(), "zeros": int(mask.sum()), "sparsity": mask.float().mean().item()}
                    for path, mask in masks.items()
                },
                "left_alone": left,
                "settings": {"scorer": repr(self.scorer), "sparsity": self.sparsity, "scope": self.scope},
                "data": {path: packed(mask) for path, mask in masks.items()},
            },
        )

    def _targets(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
        named = set().union(*(match_paths(model, pattern) for pattern in self.paths))
        ignored = set().union(*(match_paths(model, pattern) for pattern in self.ignore))
        modules, left, seen = {}, {}, set()
        for path, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and not is_conv1d(module):
                continue
            inside = any(path == i or path.startswith(i + ".") for i in ignored)
            if path not in named or inside:
                left[path] = "ignored" if inside else "not named by paths"
            elif type(module._parameters.get("weight")) is not nn.Parameter:
                left[path] = "its weight is not a plain parameter"
            elif id(module.weight) in seen:
                left[path] = "its weight is shared with a module before it"
            elif self.pattern == "2:4" and module.weight.shape[input_axis(module)] % 4:
                left[path] = f"its input axis of {module.weight.shape[input_axis(module)]} is no multiple of 4"
            else:
                seen.add(id(module.weight))
                modules[path] = module
        return modules, left


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Set the masked weights to zero. A plan without masks (from a lineage) changes nothing: its zeros come with the weights."""
    for path in plan.decisions["paths"]:
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArtifactError(f"the plan masks {path!r}, which this {type(model).__name__} does not have") from None
    if "data" in plan.decisions:
        reapply_masks(model, plan)
    return model


def reapply_masks(model: nn.Module, plan: Plan) -> nn.Module:
    """Set the weights to zero that a plan masks. Raises ArtifactError where the plan holds no masks or shapes differ."""
    if "data" not in plan.decisions:
        raise ArtifactError("this mask plan holds no masks (it comes from a lineage): use MaskKeeper(model) instead")
    for path, text in plan.decisions["data"].items():
        weight = model.get_submodule(path).weight
        with torch.no_grad():
            weight.masked_fill_(unpacked(text, weight.shape, path).to(weight.device), 0)
    return model


class MaskKeeper:
    """Remembers which weights are zero now and sets them to zero again whenever it is called.

    `paths`: the modules to keep; by default those that the mask plans of the model's lineage name (then a model without such
    a plan has nothing to keep, and calling does nothing).
    """

    def __init__(self, model: nn.Module, paths: Iterable[str] | None = None):
        if paths is None:
            past = lineage(model)
            plans = past.plans if past else ()
            paths = [path for plan in plans if plan.kind == "mask" for path in plan.decisions["paths"]]
        self.model = model
        self.masks: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        for path in dict.fromkeys(paths):
            weight = getattr(modules.get(path), "weight", None)
            if isinstance(weight, nn.Parameter):
                self.masks[path] = weight.detach() == 0

    def follow(self, procedure: Any) -> Any:
        """Make a Procedure call this keeper first in its `after_step`; returns the procedure."""
        if self.masks:
            after = procedure.after_step

            def after_step(state: Any) -> None:
                self()
                after(state)

            procedure.after_step = after_step
        return procedure

    def __call__(self) -> None:
        for path, mask in self.masks.items():
            weight = self.model.get_submodule(path).weight
            if mask.device != weight.device:
                self.masks[path] = mask = mask.to(weight.device)
            with torch.no_grad():
                weight.masked_fill_(mask, 0)


def input_axis(module: nn.Module) -> int:
    """The axis of a weight that runs over inputs."""
    transposed = is_conv1d(module) or isinstance(module, nn.modules.conv._ConvTransposeNd)
    return 0 if transposed else 1


def output_axis(module: nn.Module) -> int:
    """The axis of a weight that runs over outputs."""
    return 1 - input_axis(module)


def weight_scores(path: str, module: nn.Module, scorer: Scorer, statistics: Statistics) -> Tensor:
    """One score per weight, of the weight's shape."""
    weight = module.weight.detach()
    salience, read = statistics.saliences.get(f"{path}.weight"), statistics.inputs.get(path)
    if read is not None:
        if getattr(module, "groups", 1) > 1:
            raise UsageError(
                f"Sparsify: {path!r} is a grouped convolution, which ActivationNorm cannot read: ignore it"
            )
        shape = [1] * weight.dim()
        shape[input_axis(module)] = -1
        read = read.reshape(shape).expand_as(weight).reshape(-1, 1)
    context = Context(
        weight.numel(),
        [weight.reshape(-1, 1)],
        None if salience is None else [salience.reshape(-1, 1)],
        [read],
        name=path,
    )
    scores = scorer.score(context)
    if not scores.isfinite().all():
        raise UsageError(f"{type(scorer).__name__} gave weights of {path!r} scores that are not finite")
    return scores.reshape(weight.shape).float().cpu()


def lowest(
    scores: Mapping[str, Tensor], sparsity: float, scope: str, output_axes: Mapping[str, int]
) -> dict[str, Tensor]:
    """True where a weight goes: the round(sparsity * n) lowest of each pool of n (everything, one layer, or one row)."""
    if scope == "global":
        flat = torch.cat([s.flatten() for s in scores.values()])
        gone = _lowest_of_rows(flat[None], sparsity)[0]
        pieces = gone.split([s.numel() for s in scores.values()])
        return {path: piece.reshape(s.shape) for (path, s), piece in zip(scores.items(), pieces)}
    masks = {}
    for path, s in scores.items():
        if scope == "layer":
            masks[path] = _lowest_of_rows(s.reshape(1, -1), sparsity).reshape(s.shape)
        else:
            moved = s.movedim(output_axes[path], 0)
            gone = _lowest_of_rows(moved.flatten(1), sparsity).reshape(moved.shape)
            masks[path] = gone.movedim(0, output_axes[path]).contiguous()
    return masks


def _lowest_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    order = scores.sort(dim=1, stable=True).indices[:, : round(sparsity * scores.shape[1])]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)


def two_of_four(scores: Tensor, axis: int) -> Tensor:
    """True at the two lowest of every four neighbours along an axis whose length is a multiple of four."""
    moved = scores.movedim(axis, -1)
    order = moved.reshape(-1, 4).sort(dim=1, stable=True).indices[:, :2]
    gone = torch.zeros(order.shape[0], 4, dtype=torch.bool, device=scores.device).scatter_(1, order, True)
    return gone.reshape(moved.shape).movedim(-1, axis).contiguous()


def packed(mask: Tensor) -> str:
    """One bit per weight, deflated, as base64 text."""
    return base64.b64encode(zlib.compress(np.packbits(mask.numpy().reshape(-1)).tobytes(), 9)).decode()


def unpacked(text: str, shape: Sequence[int], path: str) -> Tensor:
    """The mask of a weight of this shape. Raises ArtifactError for damaged text or another size."""
    count = int(np.prod(tuple(shape)))
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), (count + 7) // 8 + 1)
    except (ValueError, zlib.error) as error:
        raise ArtifactError(f"the mask of {path!r} is damaged: {error}") from error
    if len(raw) != (count + 7) // 8:
        raise ArtifactError(f"the mask of {path!r} does not fit a weight of shape {tuple(shape)}")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), count=count)
    return torch.from_numpy(bits.astype(bool)).reshape(tuple(shape))
