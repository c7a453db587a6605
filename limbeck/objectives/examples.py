"""Base of objectives that look at the examples of a batch side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.signals import Reads, Signals


class ExampleObjective(Objective):
    """One feature of each model as one vector per example; fields `student` and `teacher` name the signals.

    Maps and sequences are averaged over their positions (`flat`: laid out in a row, padding as zeros). Examples of weight
    0 are gone before `compare` sees them. A first batch of fewer than `smallest` examples is refused; a later, smaller
    rest of an epoch contributes 0.
    """

    smallest = 2
    flat = False
    student: str
    teacher: str

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.student}), teacher=frozenset({self.teacher}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        size = student[self.student].shape[0]
        if size < self.smallest:
            raise UsageError(
                f"{self.name} compares at least {self.smallest} examples; the batch has {size}: use a larger batch_size"
            )
        return {}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = (
            self.vectors(feature, batch) for feature in (student[self.student], teacher[self.teacher].detach())
        )
        if own.shape[0] != target.shape[0]:
            raise UsageError(f"{self.name}: the student has {own.shape[0]} examples and the teacher {target.shape[0]}")
        own, target, weights = positions.present(batch, own, target)
        if len(own) < self.smallest:
            return positions.precise(own).sum() * 0
        with torch.autocast(own.device.type, enabled=False):
            return self.compare(positions.precise(own), positions.precise(target), weights, connectors)

    def vectors(self, feature: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """A feature as (B, D)."""
        if not self.flat:
            return connect.pool(feature, batch)
        if feature.dim() == 3:
            feature = positions.blank(feature, positions.weights(batch, feature.shape[:2], labels=False))
        return feature.flatten(1)

    def compare(self, own: Tensor, target: Tensor, weights: Tensor | None, connectors: Connectors) -> Tensor:
        """The loss of examples (B, D_s) and (B, D_t) in float32, B at least `smallest`; weights (B,), none of them 0, or None."""
        raise NotImplementedError


def pair_weights(own: Tensor, weights: Tensor | None) -> Tensor:
    """What each pair of different examples counts, w_i w_j with a zero diagonal: (B, B) of the examples' dtype."""
    pairs = 1 - torch.eye(len(own), dtype=own.dtype, device=own.device)
    return pairs if weights is None else pairs * weights.unsqueeze(0) * weights.unsqueeze(1)
