"""Objectives that cut the classes in two groups: the true class and the others.

A softmax p over C classes and a group G of them fall apart into three distributions, each with a mass of one:

    (sum_{i in G} p_i, sum_{i not in G} p_i)        how much goes to each group
    p_i / sum_{j in G} p_j,                i in G   the softmax over the group's logits alone
    p_i / sum_{j not in G} p_j,        i not in G   the softmax over the others' logits alone

Losses on the logits differ in which of them they compare, and with what weight. Everything is computed from logits that are
masked before the softmax, so a class of probability 1 leaves the others' distribution exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_classes, require_positive, require_signal, true_classes
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import LOGITS, Reads, Signals


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Which class is the true one: labels (...) to bool (..., classes)."""
    return F.one_hot(labels, classes).bool()


def within(logits: Tensor, group: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(z / T) over the classes of a group alone, float32.

    Shapes: logits (..., C), group bool (..., C) with at least one class in each row; returns (..., C). Elsewhere it holds a
    huge negative number whose exponential is 0 and which, times 0, is 0.
    """
    scores = positions.precise(logits) / temperature
    return F.log_softmax(scores.masked_fill(~group, torch.finfo(scores.dtype).min / 4), dim=-1)


def log_mass(logits: Tensor, group: Tensor, temperature: float = 1.0) -> Tensor:
    """log sum_{i in G} softmax(z / T)_i: logits (..., C), group bool (..., C) to (...), float32; exact for small masses."""
    scores, outside = positions.precise(logits) / temperature, ~group
    finfo = torch.finfo(scores.dtype)
    # exponentials that underflow take tens of times longer, so what is outside is shut out before and after them
    highest = scores.detach().masked_fill(outside, finfo.min / 4).amax(dim=-1, keepdim=True)
    inside = (scores - highest).masked_fill(outside, 0.0).exp().masked_fill(outside, 0.0).sum(dim=-1)
    return inside.clamp_min(finfo.tiny).log() + highest.squeeze(-1) - torch.logsumexp(scores, dim=-1)


@dataclass(frozen=True, kw_only=True)
class LabelledTargets(TeacherTargets):
    """Base of objectives that treat the true class apart. Labels may be probabilities (mixup): the likeliest is the true one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions != "labelled":
            raise UsageError(f"{self.name}: positions={self.positions!r}: it needs the true class: 'labelled'")
        if self.student_classes is not None:
            raise UsageError(
                f"{self.name}: student_classes={self.student_classes!r}: labels name all of the student's classes; leave it out"
            )

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss of each position: logits (..., C) of both and the true classes (...) to (...)."""
        raise NotImplementedError

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target, weights = self.aligned(student.logits, teacher.logits.detach(), batch)
        require_classes(self, own, least=3)
        labels = true_classes(self, batch, own)
        return positions.mean(self.compare_labelled(own, target, labels), weights)


@dataclass(frozen=True)
class NormalizedKD(LabelledTargets):
    """Normalized distillation: the true class by its probability, the others as a distribution of their own.

    L = mean over positions of -t_y log s_y - gamma T^2 sum_{i != y} n(z_t)_i log n(z_s)_i

    t, s: softmax of teacher and student (at T = 1); n: softmax over the classes other than y, of logits / T. Plain
    distillation compares t_i with s_i there, whose sums 1 - t_y and 1 - s_y differ, so they can never agree; n makes both sums
    one. It is added to the cross-entropy: `CrossEntropy() + NormalizedKD()`.

    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L). The paper uses gamma 1.5 and T 1 on ImageNet, gamma 1 for ViTs,
    gamma 3.5 and T 3 on CIFAR-100. Raises UsageError for fewer than three classes: there is nothing to normalize.
    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, eq. 5. Deviation: none; the
    authors' code computes the same.
    """

    gamma: float = 1.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "gamma", self.gamma)
        require_positive(self, "temperature", self.temperature)

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        true = one_hot(labels, student.shape[-1])
        own = -log_mass(teacher, true).exp() * log_mass(student, true)
        target = within(teacher, ~true, self.temperature).exp()
        others = divergences.cross_entropy(within(student, ~true, self.temperature), target)
        return own + self.gamma * self.temperature**2 * others


@dataclass(frozen=True)
class DecoupledKD(LabelledTargets):
    """Decoupled distillation: the true class against the rest, and the rest among themselves, with weights of their own.

    L = T^2 mean over positions of alpha KL(b(z_t) || b(z_s)) + beta KL(n(z_t) || n(z_s))

    b: (p_y, 1 - p_y) with p = softmax(z / T); n: softmax over the classes other than y. Soft targets are
    KL(b) + (1 - t_y) KL(n): where the teacher is sure, what it knows of the other classes hardly counts; here it does.

    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L). Raises UsageError for fewer than three classes.
    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7. Deviation: the equation has no T^2; with it, as in
    the authors' code, the weights do not depend on T. Their warm-up over the first epochs is the schedule's affair.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "temperature"):
            require_positive(self, name, getattr(self, name))

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        true = one_hot(labels, student.shape[-1])
        target, own = (
            torch.stack([log_mass(z, group, self.temperature) for group in (true, ~true)], dim=-1)
            for z in (teacher, student)
        )
        others = divergences.kl_divergence(
            within(teacher, ~true, self.temperature), within(student, ~true, self.temperature)
        )
        return self.temperature**2 * (self.alpha * divergences.kl_divergence(target, own) + self.beta * others)


@dataclass(frozen=True)
class EnhancedTargets(LabelledTargets):
    """Soft targets whose true class is raised: a teacher of another architecture counts more where it agrees with the label.

    L = mean over positions of -((1 + t_y)^gamma - e) log s_y - sum_{i != y} t_i log s_i,   e = 0 with label, 1 without

    t, s: softmax of teacher and student at temperature T. gamma 1 with label is the cross-entropy of the label plus that of
    the teacher's distribution; without label it is the latter alone, for use beside a `CrossEntropy()`. Above 1, classes that
    the teacher alone believes in weigh less, the more so the surer it is of the true one.

    raised: "target" as in the equation; "all" raises the other classes too, (t_i)^gamma, as the authors' code does.
    Shapes: logits (B, C) or (B, L, C), labels (B,) or (B, L). Raises UsageError for fewer than three classes.
    Source: Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation", NeurIPS
    2023, eq. 5 (label=True). The authors' code has label=False and the cross-entropy once beside it. The paper has T = 1.
    """

    gamma: float = 1.5
    label: bool = True
    raised: str = "target"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "gamma", self.gamma)
        require_positive(self, "temperature", self.temperature)
        require_choice(self, "raised", self.raised, ("target", "all"))

    def compare_labelled(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        true = one_hot(labels, student.shape[-1])
        target = divergences.log_probabilities(teacher, self.temperature).exp()
        others = target**self.gamma if self.raised == "all" else target
        enhanced = torch.where(true, (1 + target) ** self.gamma - (0 if self.label else 1), others)
        return divergences.cross_entropy(divergences.log_probabilities(student, self.temperature), enhanced)


def zipf_targets(scores: Tensor, group: Tensor) -> Tensor:
    """Zipf's law over a group of classes: the one with the r-th highest score gets 1/r, normalized to a sum of one.

    Shapes: scores (..., C), group bool (..., C); returns (..., C), 0 outside the group.
    """
    order = scores.masked_fill(~group, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1) + 1
    mass = (1.0 / rank.to(scores.dtype)) * group
    return mass / mass.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class UniversalSelfKD(Objective):
    """Soft labels without a teacher: the student's own confidence for the true class, ranks by Zipf's law for the others.

    L = alpha mean -p log s_y + beta mean -sum_{i != y} z_i log n(s)_i + mu mean CE((1 - e) onehot(y) + e / C, w)

    s: softmax of the student; p = s_y^2 + 1 - mean over the batch of s_y^2, so labels of easy examples are above one and of
    hard ones below; n(s): softmax over the classes other than y; w: softmax of a weak classifier on the layer `feature`
    (averaged over its positions, one linear layer, dropped after training); z: `zipf_targets` of the rank of
    w_i / (1 - w_y) + s_i / (1 - s_y). p and z carry no gradient. It is added to the cross-entropy.

    feature: a layer of the student, the paper's is the last but one stage; None: no weak classifier, ranks by s alone.
    smoothing: e. Shapes: logits (B, C), labels (B,). The paper's weights are alpha 1, beta 0.1, mu 0.005 on ImageNet, and 0.1 each
    on CIFAR. Raises UsageError for fewer than three classes.
    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, eq. 8 to 12. Deviation from
    the authors' code, not from the formula: there s in the rank are log-probabilities, and the true class takes a rank too.
    """

    feature: str | None = None
    alpha: float = 1.0
    beta: float = 0.1
    mu: float = 0.005
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.feature is not None:
            require_signal(self, "feature", self.feature)
        for name in ("alpha", "beta", "mu"):
            require_positive(self, name, getattr(self, name))
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"UniversalSelfKD: smoothing={self.smoothing!r} must be in [0, 1)")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS, self.feature} - {None}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        if self.feature is None:
            return {}
        width = pooled(student[self.feature]).shape[-1]
        return {"weak": nn.Linear(width, student.logits.shape[-1]).to(student.logits.device)}

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        logits = student.logits
        require_classes(self, logits, least=3)
        if logits.dim() != 2:
            raise UsageError(f"UniversalSelfKD: logits of shape {tuple(logits.shape)}; they must be (batch, classes)")
        labels = true_classes(self, batch, logits)
        weights = positions.weights(batch, logits.shape[:-1])
        logits = positions.blank(logits, weights)
        true = one_hot(labels, logits.shape[-1])
        log_own, log_others = log_mass(logits, true), within(logits, ~true)
        squared = log_own.detach().exp().square()
        target = squared + 1 - positions.mean(squared, weights)
        loss = self.alpha * -target * log_own
        scores = log_others.detach().exp()  # s_i / (1 - s_y)
        if self.feature is not None:
            if "weak" not in connectors:
                raise UsageError(
                    "UniversalSelfKD needs its weak classifier: hand over what objective.connectors(...) made"
                )
            feature = positions.blank(pooled(student[self.feature]), weights)
            weak = positions.precise(connectors["weak"](feature.to(next(connectors["weak"].parameters()).dtype)))
            loss = loss + self.mu * divergences.cross_entropy(F.log_softmax(weak, dim=-1), labels, self.smoothing)
            scores = scores + within(weak.detach(), ~true).exp()
        loss = loss + self.beta * divergences.cross_entropy(log_others, zipf_targets(scores, ~true))
        return positions.mean(loss, weights)


def pooled(feature: Tensor) -> Tensor:
    """A layer's output as one vector per example: maps (B, C, H, W) and sequences (B, L, C) averaged to (B, C)."""
    if feature.dim() == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.dim() == 3 else feature
