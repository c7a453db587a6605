"""Two classifiers on one feature: one for the labels, one for the teacher; they answer together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError


def mixture(labels: Tensor, teacher: Tensor, share: float, temperature: float) -> Tensor:
    """log(a softmax(z_labels) + (1 - a) softmax(z_teacher / b)) of logits (..., C), in float32; a share of 0 or 1 is one of them alone."""
    first = labels.float().log_softmax(-1)
    second = (teacher.float() / temperature).log_softmax(-1)
    if share in (0, 1):
        return first if share else second
    share = torch.tensor(float(share), device=first.device)
    return torch.logaddexp(first + share.log(), second + (1 - share).log())


class DualHead(nn.Module):
    """A linear layer for the labels and one for the teacher, on the same feature; the answer mixes their probabilities.

        p = a softmax(W_l h) + (1 - a) softmax(W_t h / b),   a = share, b = temperature

    `forward`: features (..., width) -> log p (..., classes). Objectives reach the layers as the signals "HEAD.labels" and "HEAD.teacher":

        0.5 * OnSignal("fc.labels", CrossEntropy()) + 0.5 * OnSignal("fc.teacher", SoftTargets(temperature=2.0, positions="all"))

    Where labels and teacher pull one classifier in two directions, each has its own here. share and temperature concern the answer alone
    and may be set after training (`choose_mixture`). It takes a classifier's place by `limbeck.conversion.Replace`.
    Source: Kang et al., "Simple Semi-supervised Knowledge Distillation from Vision-Language Models via Dual-Head Optimization", 2025,
    share 0.5 or chosen; the authors' code agrees. Raises UsageError for sizes below one, a share outside [0, 1] or a temperature not above 0.
    """

    def __init__(self, width: int, classes: int, share: float = 0.5, temperature: float = 1.0):
        super().__init__()
        for name, value in (("width", width), ("classes", classes)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"DualHead: {name}={value!r} must be a whole number of at least 1")
        if not 0 <= share <= 1 or not temperature > 0:
            raise UsageError(f"DualHead: share={share!r} must lie in [0, 1] and temperature={temperature!r} be above 0")
        self.labels, self.teacher = nn.Linear(width, classes), nn.Linear(width, classes)
        self.share, self.temperature = share, temperature

    def forward(self, features: Tensor) -> Tensor:
        return mixture(self.labels(features), self.teacher(features), self.share, self.temperature)


def choose_mixture(
    labels: Tensor,
    teacher: Tensor,
    truth: Tensor,
    shares: Sequence[float] = tuple(step / 20 for step in range(21)),
    temperatures: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
) -> tuple[float, float]:
    """The share and the temperature whose mixture is right most often: logits (N, C) of both heads and classes (N,) of held-out examples.

    Of equals the one nearest to half and half, then the temperature nearest to 1. The paper's grid. Choose on validation, never on test.
    """

    def score(pair: tuple[float, float]) -> tuple[float, float, float]:
        right = (mixture(labels, teacher, *pair).argmax(-1) == truth).double().mean()
        return float(right), -abs(pair[0] - 0.5), -abs(torch.tensor(pair[1]).log().item())

    return max(((share, temperature) for share in shares for temperature in temperatures), key=score)
