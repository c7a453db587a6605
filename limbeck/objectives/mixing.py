"""Objectives on the matrices by which tokens read one another: attention maps and what takes their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.layer_pair import LayerPair
from limbeck.objectives.positions import precise
from limbeck.signals import Signals


@dataclass(frozen=True)
class MatrixOrientation(LayerPair):
    """Matrix orientation: a token mixer's matrix imitates the teacher's attention map, head by head.

    L = mean over examples and heads of |M_s - A_t|_F

    student: path of the matrix a mixer multiplies the tokens with; teacher: path of the attention maps (None: the same
    path). Shapes: both (B, heads, L, L), as many heads on both sides. Rows and columns of padding do not count.
    Source: Bick et al., "Transformers to SSMs: Distilling Quadratic Knowledge to Subquadratic Models" (MOHAWK), 2024, eq. 6;
    the authors' code agrees. Raises UsageError for matrices that do not match.
    """

    student: str = "matrix"
    teacher: str | None = "weights"

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = self.pair(student, teacher)
        if own.shape != target.shape or own.dim() != 4 or own.shape[-1] != own.shape[-2]:
            raise UsageError(
                f"MatrixOrientation: the student's matrices have the shape {tuple(own.shape)}, the teacher's "
                f"{tuple(target.shape)}; both must be (batch, heads, length, length) and equal"
            )
        pairs = positions.weights(batch, (len(own), *own.shape[-2:]), labels=False)
        weights = batch.get("sample_weight")
        if pairs is not None:
            own, target = (positions.blank(x.movedim(1, -1), pairs).movedim(-1, 1) for x in (own, target))
        distance = torch.linalg.vector_norm(precise(own) - precise(target), dim=(-2, -1)).mean(1)
        return positions.mean(distance, None if weights is None else weights.float())
