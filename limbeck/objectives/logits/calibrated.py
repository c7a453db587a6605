"""Teacher targets that are trusted by how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_choice, require_labels
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals


@dataclass(frozen=True)
class CalibratedTargets(TeacherTargets):
    """The teacher's answer where it is fairly sure, the softened label where it is not, nothing at both ends.

    L = mean over kept positions of -sum_i a_i log s_i,   c: the teacher's confidence in a view
    a = t where middle <= c <= high;   a = 1 - smoothing on the label, the rest spread evenly, where low <= c < middle;
    dropped where c < low (nothing to see) or c > high (nothing to learn)

    It takes the place of the cross-entropy. confidence: "top", the teacher's largest probability, or "true", that of the label. low 0,
    middle 0 and high 1 keep the teacher's answer everywhere: soft targets at temperature 1 up to the teacher's entropy.

    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L) of whole numbers.
    Source: Shen, "FerKD: Surgical Label Adaptation for Efficient Distillation", ICCV 2023, section 3, on labels stored for random crops.
    The authors' repository holds no code of it; the values of the thresholds and which confidence is meant could not be read.
    """

    low: float = 0.15
    middle: float = 0.3
    high: float = 0.95
    smoothing: float = 0.1
    confidence: str = "top"

    def __post_init__(self) -> None:
        super().__post_init__()
        thresholds = self.low, self.middle, self.high
        if (
            not all(isinstance(t, (int, float)) for t in thresholds)
            or not 0 <= self.low <= self.middle <= self.high <= 1
        ):
            raise UsageError(f"CalibratedTargets: low, middle, high={thresholds!r} must rise within [0, 1]")
        if self.low == self.high:
            raise UsageError(f"CalibratedTargets: low=high={self.high!r} keeps nothing")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"CalibratedTargets: smoothing={self.smoothing!r} must be in [0, 1)")
        require_choice(self, "confidence", self.confidence, ("top", "true"))
        if self.positions != "labelled":
            raise UsageError(f"CalibratedTargets: positions={self.positions!r}: it needs labels: 'labelled'")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        labels = require_labels(self, batch, own)
        if labels.is_floating_point():
            raise UsageError("CalibratedTargets: labels that are probabilities cannot be softened: turn mixing off")
        t, log_s = divergences.log_probabilities(target).exp(), divergences.log_probabilities(own)
        true = labels.unsqueeze(-1)
        sure = t.amax(-1) if self.confidence == "top" else t.gather(-1, true).squeeze(-1)
        soft = torch.full_like(t, self.smoothing / (t.shape[-1] - 1)).scatter(-1, true, 1 - self.smoothing)
        wanted = torch.where((sure >= self.middle).unsqueeze(-1), t, soft)
        kept = ((sure >= self.low) & (sure <= self.high)).to(log_s.dtype)
        return positions.mean(divergences.cross_entropy(log_s, wanted), kept if weights is None else kept * weights)
