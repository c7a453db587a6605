"""Losses on logits together with their gradients, so that no graph is kept: what chunked objectives are made of.

A `Sloped` takes the student's logits (n, V), the teacher's (n, V) or None, labels (n,) or None, and the weight of each row (n,). It
returns the losses (n,) and, in float32 or what the student's logits have, row by row weight_n times the gradient of loss n (n, V). The
closed forms work in place on four buffers; every other loss goes through autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Compare = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
Sloped = Callable[[Tensor, Tensor | None, Tensor | None, Tensor], tuple[Tensor, Tensor]]


def by_autograd(compare: Compare) -> Sloped:
    """Any loss of logits row by row, (n, V), (n, V) or None, (n,) or None -> (n,), with the gradient that autograd takes."""

    def sloped(student: Tensor, teacher: Tensor | None, labels: Tensor | None, weights: Tensor):
        student = student.detach().requires_grad_()
        with torch.enable_grad():
            losses = compare(student, teacher, labels)
        return losses.detach(), torch.autograd.grad(losses, student, weights.to(losses.dtype))[0]

    return sloped


def soft_targets(temperature: float) -> Sloped:
    """T^2 KL(p || q), p and q the softmax of the teacher's and the student's logits at T; the gradient is T (q - p).

    With a = z / T - max z / T and s = sum exp a:   KL = sum p (a_t - a_s) - log s_t + log s_s.
    """

    def sloped(student: Tensor, teacher: Tensor, labels: Tensor | None, weights: Tensor):
        a_s, q, s_s = _exponentials(student, temperature)
        a_t, p, s_t = _exponentials(
            teacher.to(student.dtype) if teacher.dtype != torch.float64 else teacher, temperature
        )
        p.div_(s_t)
        gap = a_t.sub_(a_s).mul_(p).sum(-1)
        if student.device.type != "cpu" or bool(gap.isnan().any()):  # a class that both rule out: its probability is 0
            gap = torch.where(p > 0, a_t, 0.0).sum(-1)
        losses = gap + (s_s.log() - s_t.log()).squeeze(-1)
        return temperature**2 * losses, q.div_(s_s).sub_(p).mul_(temperature * weights.unsqueeze(-1))

    return sloped


def cross_entropy(smoothing: float = 0.0) -> Sloped:
    """-(1 - s) log q_y - s / V sum_i log q_i for labels y; the gradient is q - (1 - s) e_y - s / V."""

    def sloped(student: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor):
        a, q, total = _exponentials(student, 1.0)
        places = labels.unsqueeze(-1)
        losses = total.log().squeeze(-1) - (1 - smoothing) * a.gather(-1, places).squeeze(-1)
        q.div_(total)
        if smoothing:
            losses = losses - smoothing * a.mean(-1)
            q.sub_(smoothing / a.shape[-1])
        q.scatter_add_(-1, places, q.new_full(places.shape, smoothing - 1))
        return losses, q.mul_(weights.unsqueeze(-1))

    return sloped


def _exponentials(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """a = z / T - max z / T (n, V), exp a (n, V) and its sum (n, 1), in float32 or float64."""
    a = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if temperature != 1:
        a.div_(temperature)
    a.sub_(a.amax(-1, keepdim=True))
    e = a.exp()
    return a, e, e.sum(-1, keepdim=True)
