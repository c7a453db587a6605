"""Online: models that are trained together and learn from each other; none was trained before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, Objective
from limbeck.signals import Signals, Tap
from limbeck.training.procedures import Losses, Procedure, State, describe, tell


class Online(Procedure):
    """Every peer minimizes its own objective, in which each other peer in turn is the teacher.

    L_k = mean over l != k of objective_k(student=k, teacher=l)

    peers: models by name; the first is the one that is kept and evaluated, the student. objectives: one for all, or one by
    name: `Online({"student": s, "teacher": t}, {"student": CrossEntropy() + SoftTargets(), "teacher": CrossEntropy()})`.
    Every peer runs once per step, all in training mode on the same batch; no gradient flows from one to another. Connectors are
    made for each pair and trained with their student. Each peer has an optimizer of its own, named like it.

    With `CrossEntropy() + SoftTargets(temperature=1)` for all it is mutual learning (Zhang et al., "Deep Mutual Learning", CVPR
    2018, eq. 7). Raises UsageError for fewer than two peers, a module named twice, or an objective without a peer.
    """

    def __init__(self, peers: Mapping[str, nn.Module], objectives: Objective | Mapping[str, Objective]):
        if len(peers) < 2 or len({id(model) for model in peers.values()}) < len(peers):
            raise UsageError("Online needs two or more peers, each a module of its own")
        if isinstance(objectives, Objective):
            objectives = dict.fromkeys(peers, objectives)
        if set(objectives) != set(peers):
            raise UsageError(
                f"Online: objectives for {sorted(objectives)}, peers {sorted(peers)}: the names must be the same"
            )
        self.peers, self.objectives = dict(peers), {name: objectives[name] for name in peers}
        self.modules = dict(self.peers)
        self.connectors: dict[tuple[str, str], dict[str, nn.Module]] = {}

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {
            name: (name, *(module for module in self.modules if module.startswith(f"connector.{name}.")))
            for name in self.peers
        }

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        modes = {module: module.training for peer in self.peers.values() for module in peer.modules()}
        for peer in self.peers.values():
            peer.eval()  # an example must not enter the running statistics of batch normalization
        try:
            with torch.no_grad():
                signals = self._signals(batch)
                self.connectors = {
                    (own, other): {
                        name: module.to(device)
                        for name, module in self.objectives[own].connectors(signals[own], signals[other]).items()
                    }
                    for own, other in self._pairs()
                }
        finally:
            for module, mode in modes.items():
                module.training = mode
        self.modules = dict(self.peers)
        for (own, other), made in self.connectors.items():
            self.modules |= {f"connector.{own}.{other}.{name}": module for name, module in made.items()}

    def _pairs(self) -> list[tuple[str, str]]:
        return [(own, other) for own in self.peers for other in self.peers if own != other]

    def _signals(self, batch: Mapping[str, Any]) -> dict[str, Signals]:
        found = {}
        for name, model in self.peers.items():
            asked = set(self.objectives[name].reads.student)
            for other in self.peers:
                asked |= self.objectives[other].reads.teacher if other != name else set()
            with Tap(model, asked) as tap:
                found[name] = tap(batch)
        return found

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        signals = self._signals(batch)
        losses: dict[str, list[Loss]] = {name: [] for name in self.peers}
        for own, other in self._pairs():
            made = self.connectors.get((own, other), {})
            losses[own].append(self.objectives[own](signals[own], signals[other].detach(), batch, made))
        return {name: _mean(found) for name, found in losses.items()}

    def after_step(self, state: State) -> None:
        for made in self.connectors.values():
            tell(made.values(), state)

    def describe(self) -> Any:
        return {"procedure": type(self).__name__, "objectives": describe(self.objectives)}


def _mean(losses: list[Loss]) -> Loss:
    parts = {name: sum(loss.parts[name] for loss in losses) / len(losses) for name in losses[0].parts}
    return Loss(sum(loss.value for loss in losses) / len(losses), parts)
