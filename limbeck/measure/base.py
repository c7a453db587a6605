"""Measurement: a number with what is needed to believe it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """`value` is the median of `runs` repetitions, `low` and `high` their quartiles (equal to value for an exact count).

    unit: "bytes", "seconds", "items/s", "parameters", "FLOPs", "bits", or "" for a ratio such as accuracy.
    better: "lower" or "higher". where: what was measured, e.g. "onnxruntime int8 QDQ, 2 threads, batch 1".
    """

    name: str
    value: float
    unit: str = ""
    better: str = "lower"
    runs: int = 1
    low: float | None = None
    high: float | None = None
    where: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_runs(name: str, values: Sequence[float], **fields: Any) -> Measurement:
        """Median and quartiles of repeated runs."""
        if not values:
            raise ValueError(f"measurement {name!r} has no runs")
        values = sorted(values)
        if len(values) == 1:
            return Measurement(name, values[0], runs=1, low=values[0], high=values[0], **fields)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return Measurement(name, statistics.median(values), runs=len(values), low=low, high=high, **fields)
