"""Objectives on predictions across a batch: which examples, and which classes, a model finds alike, and how far two batches lie apart.

The predictions of a batch form a matrix of positions x classes, P of the teacher and Q of the student, rows softmax(z / T). Losses
position by position compare row with row; these compare columns, products of the matrices, or every row with every other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors
from limbeck.objectives.checks import require_positive
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals


def flat_weights(weights: Tensor | None, like: Tensor) -> Tensor:
    """The weights of positions (...) as one vector (N,) of the dtype of `like` (N, C); ones where all count the same."""
    return torch.ones_like(like[:, 0]) if weights is None else weights.flatten().to(like.dtype)


def require_weights(objective: TeacherTargets, *names: str) -> None:
    """Refuse weights of an objective's terms that are negative or not finite, or all 0."""
    values = [getattr(objective, name) for name in names]
    for name, value in zip(names, values):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value >= 0):
            raise UsageError(f"{objective.name}: {name}={value!r} must be a finite number of at least 0")
    if not any(values):
        raise UsageError(f"{objective.name}: {' and '.join(names)} are all 0: there is nothing to minimize")


def transport_plan(cost: Tensor, rows: Tensor, columns: Tensor, blur: float, iterations: int) -> Tensor:
    """Sinkhorn's plan for a cost matrix (N, M): exp(-cost / blur), scaled in turn so that its rows sum to `rows` (N,) and then its
    columns to `columns` (M,), all positive; in log space, so that no small blur vanishes. The columns are exact."""
    plan, row_mass, column_mass = -cost / blur, rows.log()[:, None], columns.log()
    for _ in range(iterations):
        plan = plan - plan.logsumexp(1, keepdim=True) + row_mass
        plan = plan - plan.logsumexp(0, keepdim=True) + column_mass
    return plan.exp()


@dataclass(frozen=True)
class SinkhornTargets(TeacherTargets):
    """Sinkhorn distance between the batch of the student's predictions and the teacher's: what it costs to move the one onto the other.

    L = sum_ij P_ij C_ij,   C_ij = |q_i - p_j|_1,   P = scaled exp(-C / blur), of mass 1, by `iterations` of rows, then columns

    The cost stays informative where the distributions hardly overlap, and a position is compared with every position of the batch.
    The gradient flows through cost and plan. It is used beside `CrossEntropy` and `SoftTargets`; a perfect student costs more than 0
    as long as blur > 0. Positions of weight w have mass w / sum w. Memory grows with the square of the number of positions.

    Shapes: logits (B, C) or (B, L, C), all tokens of a batch as one set.
    Source: Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation", COLING 2024; temperature 2, blur 0.1, 20
    iterations. The authors' code computes the same plan with a mass of 1 per example: its weight of 0.0008 is 0.0008 B here.
    """

    temperature: float = 2.0
    blur: float = 0.1
    iterations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)
        require_positive(self, "blur", self.blur)
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise UsageError(f"{self.name}: iterations={self.iterations!r} must be a whole number of at least 1")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        q, p = (log_probabilities(z, self.temperature).exp().flatten(0, -2) for z in (own, target))
        mass = flat_weights(weights, p)
        counted = mass > 0
        if not bool(counted.any()):
            return 0.0 * q.sum()
        mass = mass[counted] / mass.sum()
        cost = torch.cdist(q[counted], p[counted], p=1)
        return (transport_plan(cost, mass, mass, self.blur, self.iterations) * cost).sum()


@dataclass(frozen=True)
class MultiLevelTargets(TeacherTargets):
    """Multi-level logit distillation: predictions, similarities of examples and correlations of classes, at several temperatures.

    L = sum over T of  i T^2 mean_n KL(p_n || q_n)  +  b / N |P P' - Q Q'|^2  +  c / C |P' P - Q' Q|^2,   |.|: Frobenius norm

    i = instance, b = batch, c = class_; N positions, C classes, ' the transpose. A position of weight w counts as w of them. With one
    temperature and b = c = 0 it is `SoftTargets`. The norms grow with N: keep to one batch size.

    Shapes: logits (B, C) or (B, L, C). Source: Jin et al., "Multi-Level Logit Distillation", CVPR 2023, with T = 2 to 6.
    Deviations: the paper applies it to a weak and a strong view, and masks out what the teacher is sure of; here one view, all of
    it. (In the authors' code the mask multiplies a loss that is a mean already, and so only halves it.)
    """

    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0)
    instance: float = 1.0
    batch: float = 1.0
    class_: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.temperatures, (tuple, list)) or not self.temperatures:
            raise UsageError(f"{self.name}: temperatures={self.temperatures!r} must be a list of positive numbers")
        object.__setattr__(self, "temperatures", tuple(self.temperatures))
        for temperature in self.temperatures:
            require_positive(self, "temperatures", temperature)
        require_weights(self, "instance", "batch", "class_")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        loss = 0.0
        for temperature in self.temperatures:
            log_p, log_q = (log_probabilities(z, temperature).flatten(0, -2) for z in (target, own))
            mass = flat_weights(weights, log_p)
            if self.instance:
                instance = positions.mean(kl_divergence(log_p, log_q), mass)
                loss = loss + self.instance * temperature**2 * instance
            p, q = (mass.sqrt()[:, None] * z.exp() for z in (log_p, log_q))
            if self.batch:
                loss = loss + self.batch * gram_distance(p, q) / mass.sum().clamp_min(torch.finfo(mass.dtype).tiny)
            if self.class_:
                loss = loss + self.class_ * gram_distance(p.T, q.T) / p.shape[-1]
        return loss


def gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x x' - y y'|^2 of matrices (N, M), a scalar; float32 also inside autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return (x @ x.T - y @ y.T).square().sum()


@dataclass(frozen=True)
class CorrelationTargets(TeacherTargets):
    """Match correlations of the predictions, not their values: within each position over classes, and within each class over positions.

    L = a mean over positions of 1 - r(p_n, q_n) + b mean over classes of 1 - r(P_c, Q_c),   r: Pearson's correlation

    P_c are a class's probabilities over the batch's positions, weighted as they count. A constant row or column has no correlation and costs
    nothing. Shapes: logits (B, C) or (B, L, C). Source: Huang et al., "Knowledge Distillation from A Stronger Teacher" (DIST), NeurIPS 2022,
    a = b = 2 with T = 1 on ImageNet and T = 4 on CIFAR-100. Deviation: the authors' code multiplies both terms by T^2.
    """

    inter: float = 2.0
    intra: float = 2.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "temperature", self.temperature)
        require_weights(self, "inter", "intra")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        q, p = (log_probabilities(z, self.temperature).exp().flatten(0, -2) for z in (own, target))
        counted = flat_weights(weights, p)
        loss = p.new_zeros(())
        if self.inter:
            rows = correlation(p, q, torch.ones_like(p[0]))
            loss = loss + self.inter * positions.mean(1 - rows, counted)
        if self.intra:
            loss = loss + self.intra * (1 - correlation(p.T, q.T, counted)).mean()
        return loss


def correlation(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Pearson's correlation of the rows of x and y (N, M) with weights (M,): (N,); 1 where a row of either is constant."""
    share = weights / weights.sum().clamp_min(torch.finfo(x.dtype).tiny)
    x, y = (v - (v * share).sum(-1, keepdim=True) for v in (x, y))
    cross, xx, yy = ((share * a * b).sum(-1) for a, b in ((x, y), (x, x), (y, y)))
    least = torch.finfo(x.dtype).eps ** 2
    known = (xx > least) & (yy > least)
    return torch.where(known, cross * torch.where(known, xx * yy, 1.0).rsqrt(), 1.0)
