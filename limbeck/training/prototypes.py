"""Distillation across tasks through prototypes: a teacher of other classes lends its tokens, never its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models.prototypes import PrototypeNet, PrototypeSummary
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_labels, signal_layers
from limbeck.objectives.logits.targets import CrossEntropy
from limbeck.signals import LOGITS, Reads, Signals
from limbeck.training.procedures import Distil


def common_tokens(features: Sequence[Tensor]) -> list[Tensor]:
    """Features of several layers as tokens (B, N, width) of one number: sequences as they are, maps averaged to the smallest one's
    height and width. Raises UsageError for vectors and for sequences of two lengths."""
    if any(x.dim() not in (3, 4) for x in features) or len({x.dim() for x in features}) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in features)
        raise UsageError(f"prototypes sum up maps (B, C, H, W) or sequences (B, L, D) of one layout, not {shapes}")
    if features[0].dim() == 4:
        size = tuple(min(x.shape[side] for x in features) for side in (2, 3))
        features = [F.adaptive_avg_pool2d(x, size).flatten(2).transpose(1, 2) for x in features]
    if len({x.shape[1] for x in features}) > 1:
        raise UsageError(f"layers of {' and '.join(str(x.shape[1]) for x in features)} tokens: they must have as many")
    return list(features)


@dataclass(frozen=True)
class PrototypeBranch(Objective):
    """The student's prototypes and classifier learn from the teacher's tokens with the student's labels.

    L = CE(student.answer(summary(teacher's layers)), labels)

    The summary (`limbeck.models.prototypes.PrototypeSummary`) is a connector, learnt with the student. student: the model that is trained.
    layers: of the teacher, whose tokens are joined. It reads no logits of the teacher, so the classes may be others.
    """

    student: PrototypeNet
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.student, PrototypeNet):
            raise UsageError(
                f"{self.name}: the student is a {type(self.student).__name__}; prototypes are those of a PrototypeNet, such as "
                "limbeck.models.prototype_resnet(8)"
            )
        object.__setattr__(self, "layers", signal_layers(self, "layers", self.layers))

    @property
    def reads(self) -> Reads:
        return Reads(frozenset({LOGITS}), frozenset(self.layers))

    def _tokens(self, teacher: Signals) -> list[Tensor]:
        return common_tokens([positions.precise(teacher[name].detach()) for name in self.layers])

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        widths = [x.shape[2] for x in self._tokens(teacher)]
        count, width = self.student.augment.prototypes.shape
        return {"summary": PrototypeSummary(widths, width, count).to(student.logits.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        tokens = connectors["summary"](self._tokens(teacher), self.student.augment.prototypes)
        logits = self.student.answer(tokens)
        require_labels(self, batch, logits)
        return CrossEntropy()(Signals({LOGITS: logits}), Signals({}), batch).value


@dataclass(frozen=True)
class _PlainLabels(Objective):
    """Cross-entropy of the student's answer without prototypes, from the tokens that its last map holds."""

    student: PrototypeNet

    @property
    def reads(self) -> Reads:
        return Reads(frozenset({"backbone.layer3"}))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        tokens = student["backbone.layer3"].flatten(2).transpose(1, 2)
        return CrossEntropy()(Signals({LOGITS: self.student.answer(tokens, plain=True)}), Signals({}), batch).value


class PrototypeDistil(Distil):
    """Prototype-guided cross-task distillation (ProC-KD): labels, the teacher's tokens through the student's prototypes, and imitation.

    L = CE(plain answer) + own CE(enriched answer) + branch CE(answer on the teacher's tokens) + objective

    student: a `PrototypeNet`. teacher: a model of any classes. layers: of it, three in the paper. objective: what else is imitated, such as
    Hint("backbone.layer3", "layer3"), or None. branch: weight of the branch; 0: no teacher is read by it. own: weight of labels on the enriched
    answer; 0 in the paper's code, where the prototypes learn on the teacher's tokens alone and meet the student's only at inference.

    Source: "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models"; the authors' public code has the modules and both
    answers, not the losses: their weights are not known, and 1 is ours.
    """

    def __init__(
        self,
        student: PrototypeNet,
        teacher: Any,
        layers: Sequence[str] = ("layer1", "layer2", "layer3"),
        objective: Objective | None = None,
        branch: float = 1.0,
        own: float = 0.0,
    ):
        total = 1.0 * _PlainLabels(student) + branch * PrototypeBranch(student, tuple(layers)) + own * CrossEntropy()
        super().__init__(student, teacher, total if objective is None else total + objective)
