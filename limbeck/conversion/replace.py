"""Replace: put new modules in the place of old ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from limbeck.build import Factory, build
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.signals import match_paths


@dataclass(frozen=True)
class Replace:
    """Every module that `path` names, asterisks allowed, becomes what the factory makes; all else stays as it is.

        Replace("blocks.*.attention", "limbeck.models.state_space:StateSpaceMixer", {"width": 64, "heads": 4})

    target, arguments: a callable of `limbeck.models` and its keyword arguments (JSON): see `limbeck.build.Factory`. keep: paths
    that are left as they are. seed: of the new weights, which follow from it and the module's place alone; train them by
    `limbeck.conversion.BlockwiseDistil`, by `Distil`, or both. A new module must accept what the old one was called with.
    """

    path: str
    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise UsageError(f"Replace: path={self.path!r} must name modules, such as 'blocks.*.attention'")
        Factory(self.target, self.arguments)
        object.__setattr__(self, "keep", tuple(self.keep))

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Needs no data. Raises UsageError when `path` or an entry of `keep` names nothing, or nothing is left to replace."""
        found = match_paths(model, self.path)
        for path in self.keep:
            match_paths(model, path)
        paths = [path for path in found if path not in self.keep]
        if not paths:
            raise UsageError(f"Replace: keep={list(self.keep)} leaves nothing of {self.path!r} to replace")
        factory = Factory(self.target, self.arguments).to_json()
        return Plan("replace", {"modules": dict.fromkeys(paths, factory), "seed": self.seed})


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Replay the plan: dtype, device and mode of each new module are those of the old one. Raises ArtifactError for a path that
    is not there."""
    modules = dict(model.named_modules())
    for place, (path, made) in enumerate(sorted(plan.decisions["modules"].items())):
        if path not in modules:
            raise ArtifactError(f"the plan replaces {path!r}, which {type(model).__name__} does not have")
        old = modules[path]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.decisions["seed"] + place)
            new = build(Factory.from_json(made))
        like = next(old.parameters(), None)
        new = new if like is None else new.to(like.device, like.dtype)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new.train(old.training))
    return model
