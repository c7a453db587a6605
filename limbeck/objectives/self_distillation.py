"""A network as its own teacher: its deep stages teach its shallow ones, through classifiers that training throws away."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_positive, require_signal
from limbeck.objectives.exits import exit_branch
from limbeck.objectives.logits.targets import CrossEntropy, SoftTargets
from limbeck.signals import LOGITS, Reads, Signals


@dataclass(frozen=True)
class LayeredSelfDistillation(Objective):
    """Auxiliary classifiers after several stages learn the labels, and the shallower ones also what the deeper ones say and see.

    L = sum_k CE(g_k, y) + logits_weight T^2 sum_{k<l} KL(softmax(g_l / T) || softmax(g_k / T)) + features_weight sum_{k<l} |f_k - f_l|^2 / D

    g_k, f_k: logits and feature of the branch at the k-th of `layers`, shallow to deep; a branch at depth k of K has K - k reductions (or
    blocks of `heads` heads), which gives all features of a CNN that doubles its width the same size. l is the last stage ("last"), or
    the next one ("next": every stage teaches the one below); it teaches without gradient.

    classes: of the branches. None: the model's classes, and the model's own logits and the mean of its last stage stand for the last branch;
    their label loss is not part of this objective. A number: a task of their own, such as class and rotation together, where the last
    stage has a branch too. labels: the batch entry with that task's labels (B,), -100 where there is none.

    Shapes: maps (B, C, H, W), tokens (B, L, D) or vectors (B, D). Branches are connectors. A weight of 0 leaves a term out. Raises UsageError
    for fewer than two layers or features that cannot be compared.
    Sources: Zhang et al., "Be Your Own Teacher", ICCV 2019, eq. 1 to 3 (classes=None, labels="labels"); with the joint labels of
    `limbeck.datasets.augment.Rotations`, "A Layered Self-Supervised Knowledge Distillation Framework for Efficient Multimodal Learning on
    the Edge" (LSSKD), 2025, of which the abstract could be read, so pairing and weights are open. Deviation: the exits' normalization is
    over each example.
    """

    layers: tuple[str, ...]
    classes: int | None = None
    labels: str = "labels"
    pairing: str = "last"
    temperature: float = 3.0
    logits_weight: float = 1.0
    features_weight: float = 0.1
    heads: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if len(self.layers) < 2:
            raise UsageError(f"LayeredSelfDistillation: layers={self.layers!r} must be two or more, shallow to deep")
        for layer in self.layers:
            require_signal(self, "layers", layer)
        require_choice(self, "pairing", self.pairing, ("last", "next"))
        require_positive(self, "temperature", self.temperature)
        for name in ("logits_weight", "features_weight"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
                raise UsageError(f"LayeredSelfDistillation: {name}={value!r} must be a finite number of at least 0")
        if self.classes is not None and (isinstance(self.classes, bool) or self.classes < 2):
            raise UsageError(f"LayeredSelfDistillation: classes={self.classes!r} must be 2 or more, or None")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({*self.layers, *([LOGITS] if self.classes is None else [])}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        classes = self.classes or student.logits.shape[-1]
        last = len(self.layers) - 1
        made = {
            f"branch{k}": exit_branch(self.name, layer, student[layer], classes, last - k, self.heads)
            for k, layer in enumerate(self.layers)
            if k < last or self.classes is not None
        }
        widths = {feature.shape[-1] for feature, _ in self._branches(student, made)}
        if self.features_weight and len(widths) > 1:
            raise UsageError(
                f"{self.name}: the branches' features are {sorted(widths)} wide and cannot be compared: features_weight=0"
            )
        return made

    def _branches(self, student: Signals, made: Connectors) -> list[tuple[Tensor, Tensor]]:
        """Feature (B, D) and logits (B, classes) of every stage."""
        found = []
        for k, layer in enumerate(self.layers):
            x, branch = student[layer], made.get(f"branch{k}")
            if branch is None:
                feature = x.flatten(2).mean(2) if x.dim() == 4 else x.mean(1) if x.dim() == 3 else x
                found.append((positions.precise(feature), student.logits))
                continue
            with torch.autocast(x.device.type, enabled=False):
                x = x.to(next(branch.parameters()).dtype)
                plain = isinstance(branch, nn.Linear)
                feature = x if plain else branch.features(x)
                found.append((feature, (branch if plain else branch.head)(feature)))
        return found

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        values = {name: student[name] for name in sorted(self.reads.student)}
        if "branch0" not in connectors:
            raise UsageError(f"{self.name} needs its branches: hand over what connectors(student, teacher) made")
        if self.labels not in batch:
            raise UsageError(f"{self.name} needs batch[{self.labels!r}]; the batch has {sorted(batch)}")
        count = next(iter(values.values())).shape[:1]
        weights = positions.weights(batch, count, labels=False)
        values = {name: positions.blank(value, weights) for name, value in values.items()}
        stages = self._branches(Signals(values), connectors)
        labelled, soft = {**batch, "labels": batch[self.labels]}, SoftTargets(self.temperature, positions="all")
        total = stages[0][1].new_zeros(())
        for k in range(len(self.layers)):
            if f"branch{k}" in connectors:
                total = total + CrossEntropy()(Signals({LOGITS: stages[k][1]}), Signals({}), labelled).value
        pairs = itertools.pairwise(stages) if self.pairing == "next" else ((one, stages[-1]) for one in stages[:-1])
        for (feature, logits), (deeper, target) in pairs:
            if self.logits_weight:
                signals = Signals({LOGITS: logits}), Signals({LOGITS: target.detach()})
                total = total + self.logits_weight * soft(*signals, batch).value
            if self.features_weight:
                gap = divergences.mean_squared_error(feature, deeper.detach())
                total = total + self.features_weight * positions.mean(gap, weights)
        return total
