"""Calibration examples drawn by a seed, in the place of the first ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any


class Drawn:
    """A task whose examples for calibration are drawn by a seed."""

    def __init__(self, task: Any, seed: int):
        self.task, self.seed = task, seed

    def batches(self, split: str, batch_size: int, *, limit: int) -> Iterator[Mapping[str, Any]]:
        """As many batches as hold `limit` examples, in the order of the seed."""
        return itertools.islice(self.task.batches(split, batch_size, seed=self.seed), -(-limit // batch_size))
