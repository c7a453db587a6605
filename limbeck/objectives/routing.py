"""Objectives on the routers of mixtures of experts."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from torch import Tensor

from limbeck.errors import UsageError
from limbeck.models.mixture_of_experts import balance
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class ExpertBalance(Objective):
    """Load balancing: keep a router from sending every token to the same few experts.

    L = mean over routers of  E sum_i f_i P_i

    f_i: the share of tokens whose `top` choices hold expert i (over `top`), P_i: the mean routing probability. 1 is the least.

    router: path of the routing logits, an asterisk for all of them: (B, L, E) or (B, E), E >= 2. Padding does not count.
    Source: Fedus et al., "Switch Transformers", 2021, eq. 4; usual weight 0.01. Raises UsageError for one expert.
    """

    router: str = "blocks.*.feed_forward.router"
    top: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.router, str) or not self.router:
            raise UsageError(f"ExpertBalance: router={self.router!r} must name routing logits")
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 1:
            raise UsageError(f"ExpertBalance: top={self.top!r} must be a whole number of at least 1")

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.router}))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        names = [name for name in student if fnmatch.fnmatchcase(name, self.router)]
        found = [student[name] for name in names or [self.router]]
        if min(value.shape[-1] for value in found) < max(2, self.top):
            raise UsageError(
                f"ExpertBalance: {self.router!r} must be routing logits over at least {max(2, self.top)} experts"
            )
        total = 0.0
        for logits in found:
            weights = positions.weights(batch, logits.shape[:-1], labels=False)
            weights = None if weights is None else weights.flatten()
            total = total + balance(positions.blank(logits.flatten(0, -2), weights), self.top, weights)
        return total / len(found)
