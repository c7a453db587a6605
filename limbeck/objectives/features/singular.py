"""Distillation by singular value decomposition: how the main directions of successive layers relate."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_whole, signal_layers
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class SingularHints(Objective):
    """KDSVD: the main channel directions of a layer relate to those of the next layer as the teacher's do.

    A layer's map of an example, as places x channels (P, C), is cut down to its first right singular vectors v (C, k), each
    times its share s_k / |s| of the teacher's singular values. Between a layer f and the next layer b:

    L = mean over examples of sum over f, b  1/2 |R_s - R_t|^2,   R_ijk = exp(-(v^f_ik - v^b_jk)^2 / 8)

    student, teacher: two or more layers, from the input on; None: the same names. vectors: k. For each vector of the teacher
    the student's most aligned one of its first k + 1 is taken. The decomposition leaves signs open: the teacher's
    vectors sum to a positive number, the student's follow them.
    Shapes: maps (B, C, H, W) or sequences (B, L, D) with as many channels on both sides; places may differ. Padding does not count.
    The gradient through the vectors leaves out pairs of equal singular values, where it does not exist.
    Source: Lee et al., "Self-supervised Knowledge Distillation Using Singular Value Decomposition", 2018, section 3 (k = 1, width 8).
    The authors' code turns the teacher's signs to the student's, sums over the batch and multiplies by sqrt(k); otherwise it agrees. Another public
    version views (B, C, H, W) as (B, C H, W) and decomposes along the image's width.
    """

    student: Sequence[str]
    teacher: Sequence[str] | None = None
    vectors: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "student", signal_layers(self, "student", self.student, 2))
        if self.teacher is not None:
            object.__setattr__(self, "teacher", signal_layers(self, "teacher", self.teacher, 2))
            if len(self.teacher) != len(self.student):
                raise UsageError(
                    f"{self.name}: {len(self.student)} layers of the student, {len(self.teacher)} of the teacher"
                )
        require_whole(self, "vectors", self.vectors)

    @property
    def reads(self) -> Reads:
        return Reads(frozenset(self.student), frozenset(self.teacher or self.student))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        pairs = [
            self._directions(student[own], teacher[target].detach(), batch)
            for own, target in zip(self.student, self.teacher or self.student)
        ]
        total = 0.0
        for front, back in itertools.pairwise(pairs):
            ours, theirs = (neighbourhoods(a, b) for a, b in zip(front, back))
            total = total + 0.5 * (ours - theirs).square().sum((1, 2, 3))
        weights = batch.get("sample_weight")
        return positions.mean(total, None if weights is None else weights.float())

    def _directions(self, own: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        for feature in (own, target):
            if feature.dim() not in (3, 4) or connect.width(feature) != connect.width(own) or len(feature) != len(own):
                raise UsageError(
                    f"{self.name} compares maps (B, C, H, W) or sequences (B, L, D) of as many channels; the student's is "
                    f"{tuple(own.shape)}, the teacher's {tuple(target.shape)}"
                )
        with torch.autocast(own.device.type, enabled=False):
            theirs, values = principal(_places(target, batch), self.vectors)
            theirs = theirs * torch.where(theirs.sum(1, keepdim=True) < 0, -1.0, 1.0)
            ours, _ = principal(_places(own, batch), self.vectors + 1)
            cosines = ours.detach().transpose(1, 2) @ theirs
            chosen = cosines.abs().argmax(1, keepdim=True)
            signs = torch.where(cosines.gather(1, chosen) < 0, -1.0, 1.0)
            ours = ours.gather(2, chosen.expand(-1, ours.shape[1], -1)) * signs
            shares = (values / values.norm(dim=1, keepdim=True).clamp(min=1e-30)).unsqueeze(1)
        return ours * shares, theirs * shares


def _places(feature: Tensor, batch: Batch) -> Tensor:
    """(B, places, channels), zeros where a place does not count."""
    places = feature.movedim(1, -1) if feature.dim() == 4 else feature
    weights = positions.weights(batch, places.shape[:-1], labels=False)
    return positions.precise(positions.blank(places, weights)).flatten(1, -2)


def neighbourhoods(front: Tensor, back: Tensor) -> Tensor:
    """exp(-(f_ik - b_jk)^2 / 8) of (B, C, k) and (B, D, k): (B, C, D, k)."""
    return torch.exp(-(front.unsqueeze(2) - back.unsqueeze(1)).square() / 8)


def principal(matrices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors (B, C, count) of (B, P, C) and their singular values (B, count); count is cut to C.

    Differentiable in the vectors to first order: dv_i = sum over j != i of v_j (v_j^T dA v_i) / (l_i - l_j), A = X^T X. Pairs of
    eigenvalues l that are equal to 1e-6 of the largest are left out.
    """
    scale = matrices.detach().abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(matrices.dtype).tiny)
    product = (matrices / scale).transpose(1, 2) @ (matrices / scale)
    eigenvalues, eigenvectors = torch.linalg.eigh(product.detach())
    eigenvalues, eigenvectors = eigenvalues.flip(-1).clamp(min=0), eigenvectors.flip(-1)
    values = eigenvalues[:, :count].sqrt() * scale.squeeze(2)
    vectors = eigenvectors[:, :, :count]
    if not product.requires_grad:
        return vectors, values
    gaps = eigenvalues[:, None, :count] - eigenvalues[:, :, None]  # [j, i] = l_i - l_j
    apart = gaps.abs() > 1e-6 * eigenvalues[:, :1, None]
    inverse = torch.where(apart, 1 / torch.where(apart, gaps, 1.0), 0.0)
    change = eigenvectors.transpose(1, 2) @ (product - product.detach()) @ vectors  # zero, with the gradient of A
    return vectors + eigenvectors @ (change * inverse), values
