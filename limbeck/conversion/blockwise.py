"""BlockwiseDistil: train blocks of a student on what the same blocks of the teacher read and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, Objective
from limbeck.signals import Signals, Tap, match_paths
from limbeck.training.procedures import Losses, Procedure, State, describe


class BlockwiseDistil(Procedure):
    """Each block of the student is run on the inputs that the teacher's block of the same path gets, and an objective compares
    the two; so blocks do not see each other's errors and learn independently of one another.

        L = sum over blocks of objective(signals of the student's block, signals of the teacher's block)

    student, teacher: modules with the same paths; the teacher is frozen. blocks: a path or several, asterisks allowed. objective: over
    signals named inside the block: "logits" is the block's output, "weights" the output of its submodule of that name. It may
    not need connectors.

    A block is called with everything the teacher's was called with (masks too). Raises UsageError for a block that one of the
    two models does not have, and for a teacher that does not run it.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, blocks: str | Sequence[str], objective: Objective):
        if not isinstance(objective, Objective):
            raise UsageError(f"objective: expected an Objective such as Hint('logits'), got {type(objective).__name__}")
        if teacher is student:
            raise UsageError("teacher and student are the same module: copy one of them (copy.deepcopy) first")
        self.student, self.objective = student, objective
        self.teacher = teacher.eval().requires_grad_(False)
        named = [blocks] if isinstance(blocks, str) else blocks
        self.paths = list(dict.fromkeys(path for name in named for path in match_paths(student, name)))
        missing = set(self.paths) - {path for path, _ in teacher.named_modules()}
        if missing:
            raise UsageError(f"the teacher has no block {sorted(missing)[0]!r} to learn from")
        self.modules = {"student": student}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.teacher.to(device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        asked, total, parts = self._teacher_blocks(batch), 0.0, {}
        for path in self.paths:
            if path not in asked:
                raise UsageError(f"the teacher did not run its block {path!r} on this batch")
            args, kwargs, target = asked[path]
            with Tap(self.student.get_submodule(path), self.objective.reads.student) as tap:
                own = tap.run(*args, **kwargs)
            loss = self.objective(own, target, batch)
            total = total + loss.value
            parts[path] = loss.value.detach()
        return {"main": Loss(total, parts)}

    @torch.no_grad()
    def _teacher_blocks(self, batch: Mapping[str, Any]) -> dict[str, tuple[tuple, dict, Signals]]:
        """Block path to what the teacher's block was called with, and its signals."""
        paths = {path: self.teacher.get_submodule(path) for path in self.paths}
        inner = {name for name in self.objective.reads.teacher if name != "logits"}
        calls: dict[str, tuple[tuple, dict]] = {}

        def keep(path):
            def before(_, args, kwargs):
                calls[path] = (args, kwargs)

            return before

        handles = [module.register_forward_pre_hook(keep(p), with_kwargs=True) for p, module in paths.items()]
        names = {path if name == "logits" else f"{path}.{name}" for path in paths for name in {"logits", *inner}}
        try:
            with Tap(self.teacher, names) as tap:
                seen = tap(batch)
        finally:
            for handle in handles:
                handle.remove()
        return {
            path: (*calls[path], Signals({"logits": seen[path], **{n: seen[f"{path}.{n}"] for n in inner}}))
            for path in calls
        }

    def model(self) -> nn.Module:
        return self.student

    def describe(self) -> Any:
        return {
            "procedure": type(self).__name__,
            "objective": describe(self.objective),
            "blocks": self.paths,
        }
