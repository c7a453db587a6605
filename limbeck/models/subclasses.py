"""A classifier whose classes are made of subclasses: it learns finer distinctions than it is asked for."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.errors import UsageError


class SubclassHead(nn.Module):
    """A linear layer onto classes x subclasses; the answer is each class's total, z_c = log sum_s exp z_{c,s}.

    `forward`: features (..., width) -> logits (..., classes); an objective reaches the (..., classes * subclasses) logits, class after class,
    as the signal "HEAD.linear". softmax(answer)_c is the sum of the subclasses' probabilities. With one subclass it is a linear layer.
    It takes a classifier's place by `limbeck.conversion.Replace`. Raises UsageError for sizes below one.
    """

    def __init__(self, width: int, classes: int, subclasses: int):
        super().__init__()
        for name, value in (("width", width), ("classes", classes), ("subclasses", subclasses)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"SubclassHead: {name}={value!r} must be a whole number of at least 1")
        self.subclasses = subclasses
        self.linear = nn.Linear(width, classes * subclasses)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features).float().unflatten(-1, (-1, self.subclasses)).logsumexp(-1)
