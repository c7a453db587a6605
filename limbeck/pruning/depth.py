"""PruneLayers: take out whole blocks of a stack of blocks (depth pruning).

Works on every `ModuleList` or `Sequential` whose blocks return what they take in: transformer layers, the blocks of a ResNet
stage after the first. Kept blocks are renumbered from 0, the `layer_idx` that key/value caches read and the configuration of a
transformers model (`num_hidden_layers`, `layer_types`, ...) follow.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.pruning.configuration import depth_changes, set_configuration
from limbeck.pruning.importance import _check_calibration, calibration_batches, unchanged
from limbeck.signals import Tap, call, match_paths, to_device


def angular_distance(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of arccos(cos(x, y)) / pi: 0 for a block that only scales what it reads, 1 for one that turns it around.

    Shapes: x, y (B, L, features), one angle per position, those with mask (B, L) 0 left out; (B, C, H, W), one angle per
    image; (B, features). Returns a scalar. A vector of length zero counts as unchanged by itself and at a right angle to others.
    """
    if x.dim() == 4:
        x, y = x.flatten(1), y.flatten(1)
    x, y = x.double(), y.double()
    cosine = F.cosine_similarity(x, y, dim=-1, eps=1e-12)
    cosine = torch.where((x == y).all(-1), torch.ones_like(cosine), cosine).clamp(-1, 1)
    angles = cosine.arccos() / torch.pi
    if mask is not None and mask.shape == angles.shape:
        angles = angles[mask.bool()]
    return angles.mean()


class LayerScorer(Protocol):
    """(lists of block paths) -> a score per block; `None` stands for even spacing, which needs no data."""

    def scores(self, model: nn.Module, task: Any, blocks: Sequence[str]) -> dict[str, float] | None: ...


@dataclass(frozen=True)
class AngularDistance:
    """How much a block turns its input, over calibration batches of the train split: see `angular_distance`. Low goes first.

    Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", ICLR 2025, eq. 7 with n = 1; the order is that
    of the block influence 1 - cos of Men et al., "ShortGPT", 2024. Deviation: every position counts, not the last token only;
    blocks are scored once, on the whole model, and need not be neighbours.
    """

    batches: int = 4
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        _check_calibration(self)

    def scores(self, model: nn.Module, task: Any, blocks: Sequence[str]) -> dict[str, float]:
        batches = calibration_batches(model, task, self)
        names = {name for path in blocks for name in (path, f"{path}:input")}
        total = dict.fromkeys(blocks, 0.0)
        with unchanged(model), torch.no_grad(), Tap(model, names) as tap:
            for batch in batches:
                signals = tap(batch)
                for path in blocks:
                    distance = angular_distance(signals[f"{path}:input"], signals[path], batch.get("attention_mask"))
                    total[path] += distance.item() / len(batches)
        return total


@dataclass(frozen=True)
class EvenSpacing:
    """Keep blocks at even distances, the first and the last among them: the usual start of a distilled student."""

    def scores(self, model: nn.Module, task: Any, blocks: Sequence[str]) -> None:
        return None


@dataclass(frozen=True)
class PruneLayers:
    """Depth pruning.

    keep    block indices to keep (one stack only); or how many blocks stay in all stacks together; or, as a float in (0, 1],
            which fraction of them
    path    the stack's path or a pattern ("encoder.layer", "layer*"); None finds the outermost stacks of like blocks
    scorer  AngularDistance() or EvenSpacing()

    Blocks whose output has another shape than their input always stay, and at least one block of every stack does. Raises
    UsageError for an unknown path, indices outside the stack, a count that cannot be reached, or a model that does not run
    without the chosen blocks.
    """

    keep: int | float | Sequence[int]
    path: str | None = None
    scorer: LayerScorer = field(default_factory=AngularDistance)

    def __post_init__(self) -> None:
        if isinstance(self.keep, (list, tuple)):
            keep = tuple(self.keep)
            if not keep or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in keep):
                raise UsageError(f"PruneLayers: keep must list block indices from 0, at least one, not {self.keep!r}")
            if list(keep) != sorted(set(keep)):
                raise UsageError(f"PruneLayers: keep must be in rising order without repetition, not {self.keep!r}")
            object.__setattr__(self, "keep", keep)
        elif isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise UsageError(f"PruneLayers: keep must be indices, a count or a fraction, not {self.keep!r}")
        elif isinstance(self.keep, int) and self.keep < 1:
            raise UsageError(f"PruneLayers: keep must leave at least one block, not {self.keep!r}")
        elif isinstance(self.keep, float) and not 0 < self.keep <= 1:
            raise UsageError(f"PruneLayers: keep as a fraction must lie in (0, 1], not {self.keep!r}")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide which blocks stay. The model is left as it was found."""
        if task is None:
            raise UsageError("PruneLayers runs the model on an example input: pass the task")
        stacks = find_stacks(model, self.path)
        example = task.example(2)
        fixed = _fixed_blocks(model, stacks, example)
        kept = self._choose(model, task, stacks, fixed)
        lengths = {path: len(names) for path, names in stacks.items()}
        plan = Plan(
            "prune_layers",
            {
                "kept": kept,
                "layers": lengths,
                "config": depth_changes(model, lengths, kept),
                "left_alone": dict.fromkeys(fixed, "its output has another shape than its input"),
                "settings": {"scorer": repr(self.scorer)},
            },
        )
        self._try(model, plan, example)
        return plan

    def _choose(
        self, model: nn.Module, task: Any, stacks: Mapping[str, list[str]], fixed: Sequence[str]
    ) -> dict[str, list[int]]:
        total = sum(map(len, stacks.values()))
        if isinstance(self.keep, tuple):
            if len(stacks) != 1:
                raise UsageError(f"PruneLayers: indices need one stack, found {sorted(stacks)}; name it with `path`")
            ((path, names),) = stacks.items()
            if self.keep[-1] >= len(names):
                raise UsageError(f"PruneLayers: {path!r} has blocks 0 to {len(names) - 1}, not {self.keep[-1]}")
            missing = [i for i, n in enumerate(names) if f"{path}.{n}" in fixed and i not in self.keep]
            if missing:
                raise UsageError(f"PruneLayers: block {missing[0]} of {path!r} changes the shape and has to stay")
            return {path: list(self.keep)}
        count = self.keep if isinstance(self.keep, int) else max(1, round(self.keep * total))
        blocks = [f"{path}.{name}" for path, names in stacks.items() for name in names]
        must = len(fixed) + sum(not any(f"{p}.{n}" in fixed for n in names) for p, names in stacks.items())
        if not must <= count <= total:
            raise UsageError(f"PruneLayers: keep={self.keep} means {count} blocks; between {must} and {total} can stay")
        free = [block for block in blocks if block not in fixed]
        scores = self.scorer.scores(model, task, free) if count < total else dict.fromkeys(free, 0.0)
        chosen = _even(stacks, fixed, count) if scores is None else _highest(stacks, fixed, scores, count)
        return {p: [i for i, n in enumerate(names) if f"{p}.{n}" in chosen] for p, names in stacks.items()}

    def _try(self, model: nn.Module, plan: Plan, example: Mapping[str, Any]) -> None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                call(apply(copy.deepcopy(model), plan).eval(), to_device(example, device))
        except Exception as error:
            raise UsageError(
                f"PruneLayers: the model does not run with blocks {plan.decisions['kept']} only "
                f"({type(error).__name__}: {error}). Name another stack with `path`"
            ) from error


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Keep the planned blocks. Raises ArtifactError where the model's stacks have other lengths than the plan was made for."""
    for path, kept in plan.decisions["kept"].items():
        try:
            stack = model.get_submodule(path)
        except AttributeError:
            raise ArtifactError(f"the plan prunes {path!r}, which this {type(model).__name__} does not have") from None
        names, expected = list(stack._modules), plan.decisions["layers"][path]
        if len(names) != expected or not kept or max(kept) >= expected:
            raise ArtifactError(f"the plan was made for {expected} blocks in {path!r}; this model has {len(names)}")
        modules = [(names[i], stack._modules[names[i]], i) for i in kept]
        stack._modules.clear()
        for position, (name, module, old) in enumerate(modules):
            stack._modules[str(position) if name.isdigit() else name] = module
            for inner in module.modules():
                if vars(inner).get("layer_idx") == old:
                    inner.layer_idx = position
    set_configuration(model, plan.decisions["config"])
    return model


def find_stacks(model: nn.Module, path: str | None = None) -> dict[str, list[str]]:
    """{path of a stack: names of its blocks}: those a pattern names, else the outermost ones of at least two like blocks."""
    modules = dict(model.named_modules())
    if path is not None:
        found = {
            p: modules[p] for p in match_paths(model, path) if isinstance(modules[p], (nn.ModuleList, nn.Sequential))
        }
        if not found:
            raise UsageError(f"PruneLayers: {path!r} names no ModuleList or Sequential of blocks")
        return {p: list(stack._modules) for p, stack in found.items()}
    stacks: dict[str, list[str]] = {}
    for name, module in modules.items():
        inside = any(name.startswith(outer + ".") for outer in stacks)
        if not inside and isinstance(module, (nn.ModuleList, nn.Sequential)) and len(module) > 1:
            kinds = {type(block) for block in module.children()}
            if len(kinds) == 1 and all(list(block.children()) and list(block.parameters()) for block in module):
                stacks[name] = list(module._modules)
    if not stacks:
        raise UsageError(
            f"PruneLayers: {type(model).__name__} has no stack of two or more like blocks; name one with `path`"
        )
    return stacks


def _fixed_blocks(model: nn.Module, stacks: Mapping[str, list[str]], example: Mapping[str, Any]) -> list[str]:
    """Blocks whose output has another shape than their input, in model order."""
    blocks = [f"{path}.{name}" for path, names in stacks.items() for name in names]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with unchanged(model), torch.no_grad(), Tap(model, {n for b in blocks for n in (b, f"{b}:input")}) as tap:
        signals = tap(to_device(example, device))
    return [b for b in blocks if b not in signals or signals[b].shape != signals[f"{b}:input"].shape]


def _highest(
    stacks: Mapping[str, list[str]], fixed: Sequence[str], scores: Mapping[str, float], count: int
) -> set[str]:
    """Drop the lowest scores until `count` blocks are left, never a fixed one and never the last of its stack."""
    left = {path: [f"{path}.{name}" for name in names] for path, names in stacks.items()}
    order = sorted((b for blocks in left.values() for b in blocks if b not in fixed), key=lambda block: scores[block])
    excess = sum(map(len, left.values())) - count
    for block in order:
        path = next(path for path, blocks in left.items() if block in blocks)
        if excess and len(left[path]) > 1:
            left[path].remove(block)
            excess -= 1
    return {block for blocks in left.values() for block in blocks}


def _even(stacks: Mapping[str, list[str]], fixed: Sequence[str], count: int) -> set[str]:
    """`count` blocks shared out over the stacks in proportion to what may go, evenly spaced within each."""
    chosen: set[str] = set()
    free = {path: [f"{path}.{n}" for n in names if f"{path}.{n}" not in fixed] for path, names in stacks.items()}
    least = {path: int(len(blocks) == len(stacks[path])) for path, blocks in free.items()}
    places, total = count - len(fixed) - sum(least.values()), sum(len(b) - least[p] for p, b in free.items())
    shares = {path: (len(b) - least[path]) * places / max(total, 1) for path, b in free.items()}
    sizes = {path: least[path] + int(share) for path, share in shares.items()}
    for path in sorted(free, key=lambda path: int(shares[path]) - shares[path])[
        : places - sum(map(int, shares.values()))
    ]:
        sizes[path] += 1
    for path, blocks in free.items():
        size = sizes[path]
        picks = [0] if size == 1 else [round(i * (len(blocks) - 1) / (size - 1)) for i in range(size)]
        chosen |= {blocks[i] for i in picks}
    return chosen | set(fixed)
