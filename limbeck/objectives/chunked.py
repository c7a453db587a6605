"""A loss over a large vocabulary, computed in chunks of positions through the output projections of both models.

The logits of 2,048 tokens over 128,256 words fill a gigabyte in float32, several times over with their log-probabilities and gradients.
Here no more than `chunk` rows of them exist at any time, for student and teacher, forward and backward:

    for rows of a chunk:   z_s = h_s W_s^T + b_s,   z_t = h_t W_t^T + b_t,   l = sum_n w_n loss(z_s, z_t)_n / sum w
                           dz = dl / dz_s           (in the forward pass, at once)
                           dh_s = dz W_s,   dW_s += dz^T h_s,   db_s += sum dz

The backward pass only scales what was kept, so nothing is computed twice: the projection costs the same three products as in the plain
form. Kept for the backward pass are dh_s and dW_s, which the plain form must produce as well: dW_s, in float32, is what the memory cannot
fall below. On a processor the losses are computed a few rows at a time, so that all that leads to dz stays in its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives.logits.slopes import Sloped

WORDS = 2048  # rows of the projection that are cast, and whose gradient is added, at a time: in a processor's cache
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
        states, head, bias = (None if x is None else x.detach() for x in (self.states, self.weight, self.bias))
        held = states.new_empty((min(chunk, len(states)), words), dtype=kind)
        return lambda rows: project(states[rows].to(kind), head, bias, held[: len(states[rows])])


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
        tile = chunk if hidden.device.type != "cpu" else max(1, min(chunk, TILE // len(weight)))
        held = hidden.new_empty((min(chunk, len(hidden)), len(weight)), dtype=dtype)
        teach = None if teacher is None else teacher.chunks(chunk, len(weight), dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for begin in range(0, len(hidden), chunk):
                part = hidden[begin : begin + chunk].to(dtype)
                end = begin + len(part)
                slope = project(part, weight, bias, held[: len(part)])  # the logits, then what becomes of them
                given = teach(slice(begin, end)) if isinstance(teacher, Projected) else None
                for at in range(begin, end, tile):
                    rows = slice(at, min(at + tile, end))
                    here = slice(at - begin, rows.stop - begin)
                    target = given[here] if given is not None else None if teach is None else teach(rows)
                    losses, slopes = sloped(slope[here], target, None if labels is None else labels[rows], scale[rows])
                    total += (losses * scale[rows]).sum()
                    slope[here] = slopes
                added = None if grad_hidden is None else torch.zeros_like(part, dtype=precise)
                for block in blocks(weight) if any(needs[:2]) else ():
                    if added is not None:
                        added += slope[:, block] @ weight[block].to(dtype)
                    if grad_weight is not None:
                        grad_weight[block] += slope[:, block].transpose(0, 1) @ part
                if grad_hidden is not None:
                    grad_hidden[begin:end] = added
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


def blocks(head: Tensor) -> Iterator[slice]:
    """The words of a projection (V, D), some thousand at a time."""
    size = WORDS if head.device.type == "cpu" else 8 * WORDS
    return (slice(begin, begin + size) for begin in range(0, len(head), size))


def project(states: Tensor, head: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """states head^T + bias, written into `out`, in the states' type: a head of another type is cast block by block."""
    if head.dtype == states.dtype:
        torch.mm(states, head.transpose(0, 1), out=out)
    else:
        for block in blocks(head):
            torch.mm(states, head[block].to(states.dtype).transpose(0, 1), out=out[:, block])
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

    sloped: the loss with its gradient, row by row: a closed form or `by_autograd(compare)` of `limbeck.objectives.logits.slopes`. hidden (N, D),
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
