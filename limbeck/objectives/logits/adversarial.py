"""Objectives with an opponent: a small network that tells the student's outputs from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_classes
from limbeck.signals import LOGITS, Reads, Signals

SMALLEST = 8  # units of a hidden layer, also where there are few classes


def reversed_gradient(x: Tensor) -> Tensor:
    """x itself, with the sign of its gradient turned."""
    return 2 * x.detach() - x


@dataclass(frozen=True)
class Discriminator(Objective):
    """A network learns to tell the student's logits from the teacher's; the student learns to be taken for the teacher.

    L = -1/2 mean over positions of [log D(z_s) + log(1 - D(z_t))],   D: perceptron C -> hidden -> sigmoid

    The network is a connector and minimizes L. adversarial: whether the student's gradient is turned, so that it maximizes L;
    false: it minimizes L too and becomes easy to tell apart. hidden: widths of the two ReLU layers; None: C / 8 and C / 64, at
    least 8 each. Shapes: logits (B, C) or (B, L, C), the same of both.

    Source: Shen and Savvides, "MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks", 2020,
    section 3 (the regularizer there, weight 1). The authors' code was read: it turns no gradient, which is adversarial=False, and has
    two outputs behind a ReLU in place of one.
    """

    adversarial: bool = True
    hidden: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adversarial, bool):
            raise UsageError(f"Discriminator: adversarial={self.adversarial!r} must be true or false")
        if self.hidden is not None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
            if len(self.hidden) != 2 or not all(isinstance(width, int) and width >= 1 for width in self.hidden):
                raise UsageError(f"Discriminator: hidden={self.hidden!r} must be two whole numbers of at least 1")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}), teacher=frozenset({LOGITS}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        classes = teacher.logits.shape[-1]
        first, second = self.hidden or (max(classes // 8, SMALLEST), max(classes // 64, SMALLEST))
        layers = (nn.Linear(classes, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1))
        return {"discriminator": nn.Sequential(*layers).to(teacher.logits.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = student.logits, teacher.logits.detach()
        require_classes(self, own)
        if own.shape != target.shape:
            raise UsageError(
                f"Discriminator: the student's logits {tuple(own.shape)} and the teacher's {tuple(target.shape)} must fit"
            )
        if "discriminator" not in connectors:
            raise UsageError("Discriminator needs its network: hand over what connectors(student, teacher) made")
        weights = positions.weights(batch, own.shape[:-1], labels=False)
        own, target = (positions.precise(positions.blank(z, weights)) for z in (own, target))
        with torch.autocast(own.device.type, enabled=False):
            judge = connectors["discriminator"]
            real = judge(reversed_gradient(own) if self.adversarial else own).squeeze(-1)
            losses = 0.5 * (F.softplus(-real) + F.softplus(judge(target).squeeze(-1)))
        return positions.mean(losses, weights)
