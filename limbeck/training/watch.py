"""The Watch: turns what steps yielded into history, and stops a run that cannot go on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import TrainingError
from limbeck.training.config import TrainingConfig

SMOOTHING = 0.98  # of the running loss that divergence is judged by
PATIENCE = 100  # steps in a row above the bound
_ADVICE = "Try a lower learning_rate, a longer warmup, gradient_clipping=1.0 or precision='fp32', and look at the data of that step"


class Watch:
    """Collects the values of steps without waiting for the device, and reads them in one go when `read` is called.

    `read` raises TrainingError for a loss, a part of it or a gradient that is not finite, naming the step, and warns
    or raises when the smoothed loss has been `divergence_factor` times above its best for 100 steps.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self._unread: list[tuple[int, float, float, dict[str, Tensor]]] = []
        self.pending: list[dict[str, Any]] = []  # read, not yet in the history
        self.smoothed: float | None = None
        self.best: float | None = None
        self.above = 0
        self.warned = False

    def add(self, step: int, epoch: float, learning_rate: float, values: Mapping[str, Tensor]) -> None:
        """Values of one step: "loss", "gradient_norm" and the parts as "parts.NAME", each a scalar tensor."""
        self._unread.append((step, epoch, learning_rate, dict(values)))

    def read(self) -> None:
        """Bring all collected values to the host at once, and judge them."""
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        flat = [v.detach().reshape(()) for *_, values in unread for v in values.values()]
        numbers = iter(torch.stack([v.to(flat[0].device, torch.float64) for v in flat]).tolist())
        for step, epoch, rate, values in unread:
            read = {name: next(numbers) for name in values}
            self._judge(step, epoch, rate, read)
            self.pending.append({"step": step, "epoch": epoch, "learning_rate": rate, "values": read})

    def _judge(self, step: int, epoch: float, rate: float, values: Mapping[str, float]) -> None:
        bad = [
            f"{name.removeprefix('parts.')} is {value}" for name, value in values.items() if not math.isfinite(value)
        ]
        if bad:
            raise TrainingError(
                f"training cannot go on at step {step} (epoch {epoch:.3g}, learning rate {rate:.3g}): {', '.join(bad)}. "
                f"{_ADVICE}. The last checkpoint, if there is one, is from before"
            )
        loss = values["loss"]
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.best = self.smoothed if self.best is None else min(self.best, self.smoothed)
        over = self.best > 0 and self.smoothed > self.config.divergence_factor * self.best
        self.above = self.above + 1 if over else 0
        if self.above < PATIENCE or self.config.divergence == "ignore":
            return
        text = (
            f"the loss has diverged: smoothed {self.smoothed:.4g} at step {step} (learning rate {rate:.3g}), more than "
            f"{self.config.divergence_factor:g} times its best {self.best:.4g} for {PATIENCE} steps. {_ADVICE}"
        )
        if self.config.divergence == "stop":
            raise TrainingError(text)
        if not self.warned:
            self.warned = True
            warnings.warn(text, stacklevel=2)

    def entry(self) -> dict[str, Any] | None:
        """One entry of the history from what is pending: the mean of each value over the steps that had it."""
        if not self.pending:
            return None
        pending, self.pending = self.pending, []
        names = list(dict.fromkeys(name for record in pending for name in record["values"]))
        means = {}
        for name in names:
            values = [record["values"][name] for record in pending if name in record["values"]]
            means[name] = sum(values) / len(values)
        last = pending[-1]
        parts = {name.removeprefix("parts."): value for name, value in means.items() if name.startswith("parts.")}
        return {
            "step": last["step"] + 1,
            "epoch": last["epoch"],
            "loss": means["loss"],
            "parts": parts,
            "learning_rate": last["learning_rate"],
            "gradient_norm": means["gradient_norm"],
        }

    def to_json(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if nothing had happened."""
        self.read()
        names = ("pending", "smoothed", "best", "above", "warned")
        return {name: getattr(self, name) for name in names}

    def restore(self, value: Mapping[str, Any]) -> None:
        for name, item in value.items():
            setattr(self, name, item)
