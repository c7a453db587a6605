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
from limbeck.objectives import positions, slopes
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.partitions import LabelledTargets
from limbeck.objectives.slopes import Sloped
from limbeck.objectives.targets import CrossEntropy, SoftTargets, TeacherTargets
from limbeck.signals import TOP_K, Reads, Signals

WORDS = 2048  # rows of the projection whose gradient is added at a time: the product stays in a processor's cache
TILE = 1 << 18  # logits that a processor compares at a time: so do the log-probabilities and what they lead to


@dataclass(frozen=True)
class Projected:
    """A teacher's logits as what they are made of: states (N, D), weight (V, D) and bias (V,) or None of its output projection."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def chunks(self, chunk: int, words: int, dtype: torch.dtype) -> Callable[[slice], Tensor]:
        """What gives the logits of a chunk of rows, in memory that the next chunk uses again."""
        kind = torch.float64 if self.weight.dtype == torch.float64 else dtype
        states, head, bias = (None if x is None else x.detach().to(kind) for x in (self.states, self.weight, self.bias))
        held = states.new_empty((min(chunk, len(states)), words))
        return lambda rows: project(states[rows], head, bias, held[: len(states[rows])])


@dataclass(frozen=True)
class TopLogits:
    """A teacher's logits as a cache keeps them: the values (N, k) of the classes (N, k), and one value (N, 1) for each other class."""

    values: Tensor
    classes: Tensor
    rest: Tensor

    def chunks(self, chunk: int, words: int, dtype: torch.dtype) -> Callable[[slice], Tensor]:
        """What gives the logits of some rows."""

        def decoded(rows: slice) -> Tensor:
            logits = self.rest[rows].to(self.values.dtype).expand(-1, words).clone()
            return logits.scatter_(-1, self.classes[rows].long(), self.values[rows])

        return decoded


class _Chunked(torch.autograd.Function):
    """The scalar sum_n scale_n loss(z_s, z_t, labels)_n, with the gradient taken chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, sloped, chunk, hidden, weight, bias, teacher, labels, scale, dtype):
        needs = [ctx.needs_input_grad[i] for i in (2, 3, 4)]
        hidden, weight, bias = (None if x is None else x.detach() for x in (hidden, weight, bias))
        precise = torch.promote_types(dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, precise)) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, precise)) if needs[2] else None
        total = hidden.new_zeros((), dtype=precise)
        head, head_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        tile = chunk if hidden.device.type != "cpu" else max(1, min(chunk, TILE // len(weight)))
        held = hidden.new_empty((min(chunk, len(hidden)), len(weight)), dtype=dtype)
        teach = None if teacher is None else teacher.chunks(chunk, len(weight), dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(hidden), chunk):
                part = hidden[begin : begin + chunk].to(dtype)
                end = begin + len(part)
                slope = project(part, head, head_bias, held[: len(part)])  # the logits, then what becomes of them
                given = teach(slice(begin, end)) if isinstance(teacher, Projected) else None
                for at in range(begin, end, tile):
                    rows = slice(at, min(at + tile, end))
                    here = slice(at - begin, rows.stop - begin)
                    target = given[here] if given is not None else None if teach is None else teach(rows)
                    losses, slopes = sloped(slope[here], target, None if labels is None else labels[rows], scale[rows])
                    total += (losses * scale[rows]).sum()
                    slope[here] = slopes
                if grad_hidden is not None:
                    grad_hidden[begin:end] = slope @ head
                if grad_weight is not None:
                    for words in range(0, len(grad_weight), WORDS):
                        block = slice(words, words + WORDS)
                        grad_weight[block] += slope[:, block].transpose(0, 1) @ part
                if grad_bias is not None:
                    grad_bias += slope.sum(0, dtype=grad_bias.dtype)
        kept = (grad_hidden, grad_weight, grad_bias)
        like = (hidden, weight, bias)
        ctx.save_for_backward(*(None if x is None else x.to(own.dtype) for x, own in zip(kept, like)))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        kept = ctx.saved_tensors
        if grad.device.type != "cpu" or float(grad) != 1:
            kept = [None if x is None else x * grad.to(x.dtype) for x in kept]
        return (None, None, *kept, None, None, None, None)


def project(states: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """states head^T + bias, written into `out`."""
    torch.mm(states, head.transpose(0, 1), out=out)
    return out if bias is None else out.add_(bias)


def chunked_loss(
    sloped: Sloped,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    teacher: Projected | TopLogits | None = None,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    chunk: int = 256,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weighted mean over positions of a loss on logits, never holding more than `chunk` rows of them.

    sloped: the loss with its gradient, row by row: a closed form or `by_autograd(compare)` of `limbeck.objectives.slopes`. hidden (N, D),
    weight (V, D), bias (V,): of the student, which get gradients. teacher: N rows of V words, detached. labels (N,). weights (N,): None
    counts every position once. dtype: of the products; by default hidden's, or that of autocast where it is on and hidden is
    float32. The loss and the weight's gradient are summed in float32.

    Equals the loss on the whole logits to rounding. Raises UsageError for shapes that do not fit or a chunk below 1.
    """
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: must be at least 1")
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise UsageError(
            f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (positions, width) and (words, width)"
        )
    if isinstance(teacher, Projected):
        states, head = teacher.states, teacher.weight
        if states.shape[0] != hidden.shape[0] or states.shape[1] != head.shape[1] or len(head) != len(weight):
            raise UsageError(
                f"the teacher's states {tuple(states.shape)} and projection {tuple(head.shape)} do not fit the student's "
                f"{tuple(hidden.shape)} and {tuple(weight.shape)}: positions and words must be the same"
            )
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
    return _Chunked.apply(sloped, chunk, hidden, weight, bias, teacher, labels, scale, dtype)


@dataclass(frozen=True)
class LargeVocabulary(Objective):
    """An objective on logits, computed in chunks through the output projections, so that the whole logits never exist.

    objective: one that compares logits position by position (`SoftTargets`, `CrossEntropy`, `JensenShannon`, `DecoupledKD` and their
    like). student_head, teacher_head: the paths of the output projections (linear layers from states to words). Neither model runs its
    projection, so nothing that a model does to its logits afterwards (soft capping, scaling) is part of the loss. chunk: positions at a
    time; memory grows with it, and below some hundred the projection's products take longer.

    teacher_head None: the teacher is a cache that keeps the top k words of each position (`build_cache(top_k=...)`), and its logits exist
    for some rows at a time only. Each other word then has the logit `rest`: the tail's probability is exact at the temperature that the
    cache was made for, and even over its words; at another temperature it is what that even tail gives, as when the cache is read whole.

    Shapes: the projections' inputs (B, L, D). Labels are aligned as the objective wants them. The value, its reduction and its
    gradients are the objective's own, to rounding. Raises UsageError for an objective that does not compare position by
    position, and for heads of different vocabularies.
    """

    objective: Objective
    student_head: str = "lm_head"
    teacher_head: str | None = "lm_head"
    chunk: int = 256

    def __post_init__(self) -> None:
        kinds = (TeacherTargets, LabelledTargets, CrossEntropy)
        if getattr(type(self.objective), "compute", None) not in [kind.compute for kind in kinds]:
            raise UsageError(
                f"LargeVocabulary: {type(self.objective).__name__} does not compare logits position by position; give SoftTargets, "
                "CrossEntropy or another objective on logits, and add other terms outside: LargeVocabulary(SoftTargets()) + Hint(...)"
            )
        if getattr(self.objective, "student_classes", None) is not None:
            raise UsageError(
                "LargeVocabulary: student_classes cannot be chosen of a projection that is not run; leave it out"
            )
        if self.teacher_head is None and getattr(self.objective, "classes", None) is not None:
            raise UsageError("LargeVocabulary: classes cannot be chosen of a cache's top words; leave it out")
        if isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1:
            raise UsageError(f"LargeVocabulary: chunk={self.chunk!r} must be a whole number of at least 1")

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def reads(self) -> Reads:
        student = frozenset(f"{self.student_head}:{part}" for part in ("input", "weight", "bias"))
        if not self.objective.reads.teacher:
            return Reads(student)
        if self.teacher_head is None:
            return Reads(student, frozenset(TOP_K))
        return Reads(student, frozenset(f"{self.teacher_head}:{part}" for part in ("input", "weight", "bias")))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        states, weight = student[f"{self.student_head}:input"], student[f"{self.student_head}:weight"]
        shape, one = states.shape[:-1], self.objective
        hard = isinstance(one, (CrossEntropy, LabelledTargets))
        labels = self._labels(batch, shape, len(weight)) if hard else None
        ignored = {"ignore_index": one.ignore_index} if isinstance(one, CrossEntropy) else {}
        counted = positions.weights(batch, shape, labels=hard or one.positions == "labelled", **ignored)
        return chunked_loss(
            self._sloped(),
            positions.blank(states, counted).flatten(0, -2),
            weight,
            student[f"{self.student_head}:bias"],
            teacher=self._teacher(teacher, shape, len(weight), counted) if one.reads.teacher else None,
            labels=labels,
            weights=None if counted is None else counted.flatten(),
            chunk=self.chunk,
        )

    def _sloped(self) -> Sloped:
        """The closed form where there is one; a class that was derived may compare otherwise, so only of these very classes."""
        one = self.objective
        if type(one) is SoftTargets:
            return slopes.soft_targets(one.temperature)
        if isinstance(one, CrossEntropy):
            return slopes.cross_entropy(one.label_smoothing)
        if isinstance(one, LabelledTargets):
            return slopes.by_autograd(one.compare_labelled)
        return slopes.by_autograd(lambda student, teacher, _: one.compare(student, teacher))

    def _teacher(
        self, teacher: Signals, shape: torch.Size, words: int, counted: Tensor | None
    ) -> Projected | TopLogits:
        names = TOP_K if self.teacher_head is None else [f"{self.teacher_head}:input"]
        rows = [teacher[name] for name in names]
        if rows[0].shape[:-1] != shape:
            raise UsageError(
                f"{self.name}: the student's states have the positions {tuple(shape)} and the teacher's {tuple(rows[0].shape[:-1])}: they "
                "must be the same"
            )
        rows = [positions.blank(x, counted).flatten(0, -2) for x in rows]
        if self.teacher_head is None:
            found = TopLogits(*rows)
            if len(found.classes) and found.classes.device.type == "cpu" and int(found.classes.max()) >= words:
                raise UsageError(
                    f"{self.name}: the cache names word {int(found.classes.max())}; the student's vocabulary has {words} words"
                )
            return found
        return Projected(
            *rows, *(self._classes(teacher[f"{self.teacher_head}:{x}"], words) for x in ("weight", "bias"))
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

    def _labels(self, batch: Batch, shape: torch.Size, words: int) -> Tensor:
        labels, ignored = batch.get("labels"), getattr(self.objective, "ignore_index", positions.IGNORED)
        if labels is None or labels.is_floating_point() or labels.shape != shape:
            found = "none" if labels is None else f"{tuple(labels.shape)} ({labels.dtype})"
            raise UsageError(
                f"{self.name}: labels must be word indices of the shape {tuple(shape)}; the batch has {found}"
            )
        labels = labels.long().masked_fill(labels == ignored, 0).flatten()
        if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < words:
            raise UsageError(f"{self.name}: a label is no word of a vocabulary of {words}")
        return labels
