"""Objectives that keep private tokens from flowing from teacher to student."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_positive
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals


def shielded(
    logits: Tensor, degree: Tensor, temperature: float, private_temperature: float, noise: float = 0.0
) -> Tensor:
    """log softmax(z / T(d) + d noise n), T(d) = T_0 + d (T_1 - T_0), n normal, one number per class.

    logits (..., C), degree d (...) in [0, 1]. Returns (..., C). Draws from the global generator only where noise > 0.
    """
    degree = degree[..., None]
    scores = positions.precise(logits) / (temperature + degree * (private_temperature - temperature))
    if noise:
        scores = scores + degree * noise * torch.randn_like(scores)
    return divergences.log_probabilities(scores)


@dataclass(frozen=True)
class ShieldedTargets(TeacherTargets):
    """Soft targets whose temperature rises, and that are noised, with the degree to which a token may be private.

    L = T_0^2 mean over positions of KL(softmax(z_t / T(d) + d noise n) || softmax(z_s / T_0)),   T(d) = T_0 + d (T_1 - T_0)

    d = batch[key], (B,) or (B, L), is the degree of what a position predicts, 0 to 1 (see `limbeck.datasets.privacy`); T_0 is
    `temperature`, T_1 `private_temperature`, n standard normal, drawn anew at every step. A private target tends to the
    uniform distribution, and the student, which keeps T_0, learns that. Where d = 0 this is `SoftTargets(temperature=T_0)`.

    Shapes: logits (B, C) or (B, L, C). Raises UsageError for a batch without degrees, so that nothing goes unprotected.

    Source: Li et al., "Swing Distillation: A Privacy-Preserving Knowledge Distillation Framework", 2022. The published text that we
    could read names the parts, not the formulas: the line T(d), normal noise inside the softmax and the student's own
    temperature are this library's choice. (With one T(d) on both sides the loss would still ask for the teacher's logits.)
    """

    temperature: float = 1.0
    private_temperature: float = 20.0
    noise: float = 1.0
    key: str = "private"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)
        require_positive(self, "private_temperature", self.private_temperature)
        if self.private_temperature < self.temperature:
            raise UsageError(
                f"{self.name}: private_temperature={self.private_temperature!r} must be at least the temperature {self.temperature!r}"
            )
        if isinstance(self.noise, bool) or not math.isfinite(self.noise) or self.noise < 0:
            raise UsageError(f"{self.name}: noise={self.noise!r} must be 0 or a positive finite number")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        log_p = shielded(target, self._degree(batch, own), self.temperature, self.private_temperature, self.noise)
        log_q = divergences.log_probabilities(own, self.temperature)
        return self.temperature**2 * positions.mean(divergences.kl_divergence(log_p, log_q), weights)

    def _degree(self, batch: Batch, own: Tensor) -> Tensor:
        degree = batch.get(self.key)
        if degree is None or tuple(degree.shape) != tuple(own.shape[:-1]):
            found = "is missing" if degree is None else f"has the shape {tuple(degree.shape)}"
            raise UsageError(f"{self.name}: batch[{self.key!r}] {found}; it must be {tuple(own.shape[:-1])}, 0 to 1")
        return degree.to(own.device, torch.float32).clamp(0, 1)
