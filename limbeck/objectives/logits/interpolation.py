"""Objectives whose target moves from the student to the teacher while training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_positive
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals


class AdaptiveShare(nn.Module):
    """A share t that grows from `start` to `end` over a run, never slower than linearly, and faster while a loss J falls.

    after step n of N:   d = (J_{n-1} - J_n) / J_{n-1},   m <- b m + (1 - b) d
    t <- min(end, max(start + (end - start) n / N, t + rate sigmoid(m) (1 - t)))

    b = momentum; the first step only writes J down. Its state is in buffers, so that a checkpoint holds it. Pieces of a batch, and
    several processes, are put together as the weighted mean of their losses.
    """

    def __init__(self, start: float, end: float, rate: float, momentum: float):
        super().__init__()
        self.start, self.end, self.rate, self.momentum = start, end, rate, momentum
        self.register_buffer("share", torch.tensor(float(start)))
        for name in ("trend", "total", "weight"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("previous", torch.full((), -1.0))

    @torch.no_grad()
    def observe(self, loss: Tensor, weight: Tensor | float) -> None:
        """Take in the loss of a piece of this step's batch, which counts `weight`."""
        self.total += weight * loss
        self.weight += weight

    @torch.no_grad()
    def after_step(self, state: Any) -> None:
        """Move to the share of the next step. A step in which nothing counted only follows the line."""
        seen = torch.stack([self.total, self.weight])
        if state.processes > 1:
            torch.distributed.all_reduce(seen)
        line = self.start + (self.end - self.start) * (state.step + 1) / state.steps
        share = self.share.clone()
        if float(seen[1]) > 0:
            loss = seen[0] / seen[1]
            if float(self.previous) >= 0:
                fall = (self.previous - loss) / self.previous.clamp_min(1e-15)
                self.trend.lerp_(fall, 1 - self.momentum)
                share += self.rate * self.trend.sigmoid() * (1 - share)
            self.previous.copy_(loss)
        self.share.copy_(share.clamp_min(line).clamp_max(self.end))
        self.total.zero_(), self.weight.zero_()


@dataclass(frozen=True)
class InterpolatedTargets(TeacherTargets):
    """Interpolated distillation: the target starts near the student's own distribution and ends as the teacher's.

    L = mean over positions of KL(p || softmax(z_s)),   p = softmax((1 - t) z_s + t z_t) without gradient,   t: `AdaptiveShare`

    A teacher far above its student asks for modes that the student cannot hold yet; here each step asks for a part of the way. At
    t = 1 it is soft targets of temperature 1. rate 0: t grows linearly with the steps. progress: the loss that t follows, "kl" as in
    the paper or "cross_entropy", -sum p log softmax(z_s), as in the authors' code, where it is the loss as well (the same gradient).

    The share lives in a connector, which whoever runs the objective tells of every step, as `Distil` does. Shapes: logits (B, C)
    or (B, L, C). Raises UsageError without that connector.
    Source: Shing et al., "TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
    ICLR 2025, section 3 and algorithm 1; start 0.4, rate 5e-4, momentum 0.99 for runs of many thousands of steps.
    """

    start: float = 0.4
    end: float = 1.0
    rate: float = 5e-4
    momentum: float = 0.99
    progress: str = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "end", self.end)
        for name, low, high in (("start", 0, self.end), ("rate", 0, 1), ("momentum", 0, 1), ("end", 0, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise UsageError(f"{self.name}: {name}={value!r} must be a number from {low} to {high}")
        if self.momentum == 1:
            raise UsageError(f"{self.name}: momentum=1 would never see the loss; the paper's is 0.99")
        require_choice(self, "progress", self.progress, ("kl", "cross_entropy"))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        share = AdaptiveShare(self.start, self.end, self.rate, self.momentum)
        return {"share": share.to(student.logits.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        if "share" not in connectors:
            raise UsageError(f"{self.name} needs its share: hand over what objective.connectors(student, teacher) made")
        follower, log_q = connectors["share"], log_probabilities(own)
        mixed = torch.lerp(positions.precise(own.detach()), positions.precise(target), follower.share.to(log_q.dtype))
        log_p = log_probabilities(mixed)
        loss = positions.mean(kl_divergence(log_p, log_q), weights)
        extra = positions.mean(divergences.entropy(log_p), weights) if self.progress == "cross_entropy" else 0.0
        follower.observe(
            loss.detach() + extra, loss.new_tensor(log_p[..., 0].numel()) if weights is None else weights.sum()
        )
        return loss
