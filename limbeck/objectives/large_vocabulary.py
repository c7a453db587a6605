"""Objectives over a large vocabulary, computed in chunks of positions through the output projections of both models.

The logits of 2,048 tokens over 128,256 words fill a gigabyte in float32, several times over with their log-probabilities and gradients.
Here no more than `chunk` rows of them exist at any time, for student and teacher, forward and backward:

    for rows of a chunk:   z_s = h_s W_s^T + b_s,   z_t = h_t W_t^T + b_t,   l = sum_n w_n loss(z_s, z_t)_n / sum w
                           dz = dl / dz_s           (in the forward pass, at once)
                           dh_s = dz W_s,   dW_s += dz^T h_s,   db_s += sum dz

The backward pass only scales what was kept, so nothing is computed twice: the projection costs the same three products as in the plain
form. Kept for the backward pass are dh_s and dW_s, which the plain form must produce as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_classes
from limbeck.objectives.targets import CrossEntropy, TeacherTargets
from limbeck.signals import Reads, Signals

WORDS = 16384  # rows of the projection whose gradient is added at a time: bounds the product that is not yet added
Compare = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


class _Chunked(torch.autograd.Function):
    """The scalar sum_n scale_n compare(z_s, z_t, labels)_n, with the gradient taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, compare, chunk, hidden, weight, bias, teacher, labels, scale, dtype):
        needs = [ctx.needs_input_grad[i] for i in (2, 3, 4)]
        plain = [None if x is None else x.detach() for x in (hidden, weight, bias)]
        hidden, weight, bias = plain
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = (
            torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) if needs[1] else None
        )
        grad_bias = torch.zeros_like(bias) if needs[2] else None
        own_weight = weight.to(dtype)
        own_bias = None if bias is None else bias.to(dtype)
        total = hidden.new_zeros((), dtype=torch.promote_types(dtype, torch.float32))
        for begin in range(0, len(hidden), chunk):
            rows = slice(begin, begin + chunk)
            part = hidden[rows].to(dtype)
            with torch.autocast(hidden.device.type, enabled=False):
                logits = torch.nn.functional.linear(part, own_weight, own_bias)
                target = None
                if teacher is not None:
                    states, head, head_bias = teacher
                    kind = torch.promote_types(dtype, head.dtype) if head.dtype == torch.float64 else dtype
                    target = torch.nn.functional.linear(
                        states[rows].to(kind), head.to(kind), None if head_bias is None else head_bias.to(kind)
                    )
                with torch.enable_grad():
                    logits.requires_grad_(any(needs))
                    losses = compare(logits, target, None if labels is None else labels[rows])
                    value = (losses * scale[rows].to(losses.dtype)).sum()
                total += value.detach()
                if any(needs):
                    (slope,) = torch.autograd.grad(value, logits)
                    if grad_hidden is not None:
                        grad_hidden[rows] = (slope @ own_weight).to(grad_hidden.dtype)
                    if grad_weight is not None:
                        for words in range(0, len(grad_weight), WORDS):
                            block = slice(words, words + WORDS)
                            grad_weight[block] += slope[:, block].transpose(0, 1) @ part
                    if grad_bias is not None:
                        grad_bias += slope.sum(0)
        kept = (grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias)
        ctx.save_for_backward(*kept)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        scaled = [None if x is None else x * grad.to(x.dtype) for x in ctx.saved_tensors]
        return (None, None, *scaled, None, None, None, None)


def chunked_loss(
    compare: Compare,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    teacher: tuple[Tensor, Tensor, Tensor | None] | None = None,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    chunk: int = 128,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weighted mean over positions of compare(student logits, teacher logits, labels), never holding more than `chunk` rows of logits.

    compare: (n, V), (n, V) or None, (n,) or None -> (n,) losses; its gradient with respect to the first is taken by autograd, the teacher's
    logits carry none. hidden (N, D), weight (V, D), bias (V,): of the student, which get gradients. teacher: (states (N, D_t), weight
    (V, D_t), bias or None), detached. labels (N,). weights (N,): None counts every position once. dtype: of the products; by default
    hidden's, or that of autocast where it is on and hidden is float32. The loss and the weight's gradient are summed in float32.

    Equals compare on the whole logits to rounding. Raises UsageError for shapes that do not fit or a chunk below 1.
    """
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: must be at least 1")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (positions, width) and (words, width)"
        )
    if teacher is not None:
        states, head, _ = teacher
        if states.shape[0] != hidden.shape[0] or states.shape[1] != head.shape[1]:
            raise UsageError(
                f"the teacher's states {tuple(states.shape)} and projection {tuple(head.shape)} do not fit the student's "
                f"{tuple(hidden.shape)}: the positions must be the same"
            )
        teacher = tuple(None if x is None else x.detach() for x in teacher)
    if dtype is None:
        device = hidden.device.type
        lowered = hidden.dtype == torch.float32 and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if lowered else hidden.dtype
    if weights is None:
        scale = torch.full((len(hidden),), 1 / max(len(hidden), 1), device=hidden.device)
    else:
        total = weights.sum()
        scale = weights / torch.where(total == 0, torch.ones_like(total), total)
    if dtype == torch.float64:
        scale = scale.double()
    return _Chunked.apply(compare, chunk, hidden, weight, bias, teacher, labels, scale, dtype)


@dataclass(frozen=True)
class LargeVocabulary(Objective):
    """An objective on logits, computed in chunks through the output projections, so that the whole logits never exist.

    objective: one that compares logits position by position (`SoftTargets`, `CrossEntropy` and their like). student_head, teacher_head: the
    paths of the output projections (linear layers from states to words). Neither model runs its projection, so nothing that a model does
    to its logits afterwards (soft capping, scaling) is part of the loss. chunk: positions at a time.

    Shapes: the projections' inputs (B, L, D). Labels are aligned as the objective wants them. The value, its reduction and its
    gradients are the objective's own, to rounding. Raises UsageError for an objective that does not compare position by
    position, and for heads of different vocabularies.
    """

    objective: Objective
    student_head: str = "lm_head"
    teacher_head: str = "lm_head"
    chunk: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.objective, (TeacherTargets, CrossEntropy)):
            raise UsageError(
                f"LargeVocabulary: {type(self.objective).__name__} does not compare logits position by position; give SoftTargets, "
                "CrossEntropy or another objective on logits, and add other terms outside: LargeVocabulary(SoftTargets()) + Hint(...)"
            )
        if getattr(self.objective, "student_classes", None) is not None:
            raise UsageError(
                "LargeVocabulary: student_classes cannot be chosen of a projection that is not run; leave it out"
            )
        if self.chunk < 1:
            raise UsageError(f"LargeVocabulary: chunk={self.chunk}: must be at least 1")

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def reads(self) -> Reads:
        heads = (self.student_head, self.teacher_head)
        names = [frozenset(f"{head}:{part}" for part in ("input", "weight", "bias")) for head in heads]
        return Reads(names[0], names[1] if self.objective.reads.teacher else frozenset())

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        states, weight = student[f"{self.student_head}:input"], student[f"{self.student_head}:weight"]
        shape, hard = states.shape[:-1], isinstance(self.objective, CrossEntropy)
        labels, other = None, None
        if hard:
            labels = self._labels(batch, shape)
            counted = positions.weights(batch, shape, ignore_index=self.objective.ignore_index)
        else:
            counted = positions.weights(batch, shape, labels=self.objective.positions == "labelled")
            own = teacher[f"{self.teacher_head}:input"]
            if own.shape[:-1] != shape:
                raise UsageError(
                    f"{self.name}: the student's states are {tuple(states.shape)} and the teacher's {tuple(own.shape)}: their positions "
                    "must be the same"
                )
            head = [self._classes(teacher[f"{self.teacher_head}:{part}"], len(weight)) for part in ("weight", "bias")]
            other = (positions.blank(own, counted).flatten(0, -2), *head)
        return chunked_loss(
            self._hard if hard else lambda z_s, z_t, _: self.objective.compare(z_s, z_t),
            positions.blank(states, counted).flatten(0, -2),
            weight,
            student[f"{self.student_head}:bias"],
            teacher=other,
            labels=labels,
            weights=None if counted is None else counted.flatten(),
            chunk=self.chunk,
        )

    def _classes(self, head: Tensor, words: int) -> Tensor:
        if self.objective.classes is not None:
            if max(self.objective.classes) >= len(head):
                raise UsageError(
                    f"{self.name}: classes names {max(self.objective.classes)}; the teacher has {len(head)}"
                )
            head = head[torch.tensor(self.objective.classes, device=head.device)]
        if len(head) != words:
            raise UsageError(
                f"{self.name}: the student's vocabulary has {words} words and the teacher's {len(head)}. Give both the same, or "
                "name the teacher's word for each of the student's: classes=(...)"
            )
        return head

    def _labels(self, batch: Batch, shape: torch.Size) -> Tensor:
        labels = batch.get("labels")
        if labels is None or labels.is_floating_point() or labels.shape != shape:
            found = "none" if labels is None else f"{tuple(labels.shape)} ({labels.dtype})"
            raise UsageError(
                f"{self.name}: labels must be word indices of the shape {tuple(shape)}; the batch has {found}"
            )
        return labels.long().masked_fill(labels == self.objective.ignore_index, 0).flatten()

    def _hard(self, logits: Tensor, _: Tensor | None, labels: Tensor) -> Tensor:
        require_classes(self.objective, logits)
        if (
            logits.device.type == "cpu"
            and len(labels)
            and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]
        ):
            raise UsageError(f"{self.name}: a label is no word of a vocabulary of {logits.shape[-1]}")
        log_q = divergences.log_probabilities(logits)
        return divergences.cross_entropy(log_q, labels, self.objective.label_smoothing)
