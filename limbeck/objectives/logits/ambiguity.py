"""Soft targets that weigh a position by how ambiguous it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives import divergences
from limbeck.objectives.checks import require_positive
from limbeck.objectives.logits.targets import TeacherTargets


@dataclass(frozen=True)
class DeviationAware(TeacherTargets):
    """Deviation-aware distillation: ambiguous positions, where teacher and student spread their answers, count more.

    L = T^2 mean over positions of (H(p) + H(q))^gamma KL(p || q),   p, q = softmax(z_t / T), softmax(z_s / T)

    H: entropy in nats, without gradient. A model of few bits errs where the answer is open; there the plain loss is small in share because
    most positions are certain. gamma 0 would be `SoftTargets`. Shapes: logits (B, C) or (B, L, C). Computed in float32.
    Source: Chen et al., "DB-LLM: Accurate Dual-Binarization for Efficient LLMs", 2024, section 3.3. No public source that could be read gives
    gamma and whether teacher's and student's entropy are added: this is the sum, and gamma is a setting.
    Deviation: KL in place of the soft cross-entropy: the same gradient for given weights, 0 for a perfect student.
    """

    gamma: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "gamma", self.gamma)
        require_positive(self, "temperature", self.temperature)

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p, log_q = (divergences.log_probabilities(z, self.temperature) for z in (teacher, student))
        with torch.no_grad():
            ambiguity = (divergences.entropy(log_p) + divergences.entropy(log_q)) ** self.gamma
        return self.temperature**2 * ambiguity * divergences.kl_divergence(log_p, log_q)
