"""Learning rate schedules as closed forms of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rate_factor(
    schedule: str,
    step: int,
    steps: int,
    warmup: float = 0.0,
    milestones: Sequence[float] = (0.5, 0.75),
    decay: float = 0.1,
) -> float:
    """What the base learning rate is multiplied with at step 0 .. steps - 1.

    With w = round(warmup * steps) and t = (step - w) / (steps - w):

        step < w:  (step + 1) / w                    linear rise that reaches 1 at the last warm-up step
        cosine:    (1 + cos(pi t)) / 2
        linear:    1 - t
        step:      decay ** (number of milestones m with step >= m * steps)
        constant:  1

    Source of cosine: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, eq. 5,
    without restarts.
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    if schedule == "step":
        return decay ** sum(step >= milestone * steps for milestone in milestones)
    return 1.0
