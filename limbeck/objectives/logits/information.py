"""What a classifier says beyond the class: how far its predictions of one class's examples lie apart.

It is for training teachers: `CrossEntropy() + (-0.15) * ConditionalInformation()` makes a teacher that tells the examples of a class apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_classes, true_classes
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.signals import LOGITS, Reads, Signals


class ClassCentroids(nn.Module):
    """The mean prediction of each class, Q (C, C), followed by a moving average: Q_y <- d Q_y + (1 - d) mean of this step's.

    A class that was not seen before takes the mean of its first step. decay 1 keeps what was given. State is in buffers.
    """

    def __init__(self, classes: int, decay: float, given: Tensor | None = None):
        super().__init__()
        self.decay = decay
        start = torch.full((classes, classes), 1 / classes) if given is None else given.clone()
        self.register_buffer("centroids", start)
        self.register_buffer("known", torch.full((classes,), given is not None))
        self.register_buffer("total", torch.zeros(classes, classes))
        self.register_buffer("count", torch.zeros(classes))

    @torch.no_grad()
    def observe(self, predictions: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Take in predictions (N, C) of the classes `labels` (N,), and give the centroids to compare them with (N, C)."""
        self.total.index_add_(0, labels, (predictions * weights[:, None]).to(self.total.dtype))
        self.count.index_add_(0, labels, weights.to(self.count.dtype))
        new = ~self.known & (self.count > 0)
        return torch.where(new[:, None], self.total / self.count.clamp_min(1e-12)[:, None], self.centroids)[labels]

    @torch.no_grad()
    def after_step(self, state: Any) -> None:
        """Move the centroids of the classes that this step had."""
        if state.processes > 1:
            torch.distributed.all_reduce(self.total)
            torch.distributed.all_reduce(self.count)
        seen = self.count > 0
        mean = self.total / self.count.clamp_min(1e-12)[:, None]
        decay = torch.where(self.known, self.decay, 0.0)[:, None]
        self.centroids.copy_(torch.where(seen[:, None], decay * self.centroids + (1 - decay) * mean, self.centroids))
        self.known |= seen
        self.total.zero_(), self.count.zero_()


@dataclass(frozen=True)
class ConditionalInformation(Objective):
    """Conditional mutual information between an example and its prediction, given its class: what the teacher knows of it beyond the class.

    I = mean over positions of KL(softmax(z) || Q_y),   Q_y: mean prediction of the class, without gradient (`ClassCentroids`)

    Subtracted from the cross-entropy, it spreads the predictions of a class without making them wrong: a teacher whose soft targets
    tell more. Added, it gathers them.

    centroids: the Q to start from, C rows of C probabilities, as `class_centroids` computes them; None: from the first steps. decay: of
    their moving average; 1 keeps them. Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L). Raises UsageError for rows that are no
    distributions.
    Source: Ye et al., "Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual Information",
    ICLR 2024, eq. 9 and algorithm 1 (weight -0.15, decay 0.9999). Deviation: the centroids follow the batch's own examples, not further
    ones that are drawn for it. The authors' released script, whose loss agrees, computes them once before training: give them, with decay=1.
    """

    centroids: tuple[tuple[float, ...], ...] | None = None
    decay: float = 0.9999

    def __post_init__(self) -> None:
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0 <= self.decay <= 1:
            raise UsageError(f"{self.name}: decay={self.decay!r} must be a number from 0 to 1")
        if self.centroids is None:
            if self.decay == 1:
                raise UsageError(f"{self.name}: decay=1 keeps the centroids that are given: give centroids")
            return
        rows = tuple(tuple(float(value) for value in row) for row in self.centroids)
        if len(rows) < 2 or any(len(r) != len(rows) or min(r) < 0 or abs(sum(r) - 1) > 1e-3 for r in rows):
            raise UsageError(f"{self.name}: centroids must be C rows of C probabilities that sum to 1")
        object.__setattr__(self, "centroids", rows)

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        logits = student.logits
        given = None if self.centroids is None else torch.tensor(self.centroids)
        if given is not None and len(given) != logits.shape[-1]:
            raise UsageError(f"{self.name}: centroids of {len(given)} classes, logits of {logits.shape[-1]}")
        return {"centroids": ClassCentroids(logits.shape[-1], self.decay, given).to(logits.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        logits = student.logits
        require_classes(self, logits)
        labels = true_classes(self, batch, logits)
        if "centroids" not in connectors:
            raise UsageError(
                f"{self.name} needs its centroids: hand over what objective.connectors(student, teacher) made"
            )
        weights = positions.weights(batch, logits.shape[:-1])
        log_p = log_probabilities(positions.blank(logits, weights)).flatten(0, -2)
        weights = torch.ones_like(log_p[:, 0]) if weights is None else weights.flatten()
        centre = connectors["centroids"].observe(log_p.detach().exp(), labels.flatten(), weights)
        tiny = torch.finfo(log_p.dtype).tiny
        return positions.mean(kl_divergence(log_p, centre.to(log_p.dtype).clamp_min(tiny).log()), weights)


@torch.no_grad()
def class_centroids(forward: Any, task: Any, split: str = "train", batch_size: int = 256) -> Tensor:
    """The mean prediction of each class over a split: (C, C), rows sum to 1. forward: batch -> logits (B, C), in evaluation mode.

    Raises UsageError for a class without examples.
    """
    total, count = 0.0, 0.0
    for batch in task.batches(split, batch_size):
        own = nn.functional.one_hot(batch["labels"], len(task.classes)).double()
        total = total + own.T @ log_probabilities(forward(batch)).exp().double()
        count = count + own.sum(0)
    if bool((count == 0).any()):
        missing = [task.classes[i] for i in (count == 0).nonzero().flatten()]
        raise UsageError(f"class_centroids: the split {split!r} has no example of {missing}")
    return (total / count[:, None]).float()
