"""Budget: limits in measured units.

Each limit is compared with a Measurement of the exported result, never with a parameter count:
bytes (of the exported file), latency (median seconds, batch 1), memory (peak bytes of an inference process) and drop (how much of the
reference's main metric may be lost: "1%" is relative, 0.01 is absolute).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import UsageError, did_you_mean
from limbeck.measure.base import Measurement

_SIZES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def parse_quantity(value: Any, units: Mapping[str, float], field: str) -> float:
    """A number with a unit, such as "2 ms" or "100 kB", in the base unit. Raises UsageError."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-zµ]*)\s*", str(value))
        if not match or match[2].lower() not in units:
            allowed = ", ".join(unit for unit in units if unit)
            raise UsageError(f"budget.{field}: {value!r} is not a number with one of the units {allowed}")
        number = float(match[1]) * units[match[2].lower()]
    if not number > 0 or number == float("inf"):
        raise UsageError(f"budget.{field}: {value!r} must be a positive, finite number")
    return number


@dataclass(frozen=True)
class Budget:
    """Limits of what may come out; None means no limit. Strings carry units: Budget(latency="2 ms", bytes="100 kB", drop="1%")."""

    bytes: float | str | None = None
    latency: float | str | None = None
    memory: float | str | None = None
    drop: float | str | None = None

    def __post_init__(self) -> None:
        for field, units in (("bytes", _SIZES), ("latency", _TIMES), ("memory", _SIZES)):
            value = getattr(self, field)
            if value is not None:
                object.__setattr__(self, field, parse_quantity(value, units, field))
        if self.drop is not None:
            self._drop()

    def _drop(self) -> tuple[float, bool]:
        """The allowed loss and whether it is relative to the reference."""
        text = str(self.drop).strip()
        try:
            number = float(text.rstrip("%"))
        except ValueError:
            number = -1.0
        if not 0 <= number < 100:
            raise UsageError(f"budget.drop: {self.drop!r} must be like 0.01 (absolute) or '1%' (of the reference)")
        return (number / 100, True) if text.endswith("%") else (number, False)

    @staticmethod
    def from_mapping(value: Mapping[str, Any] | Budget | None) -> Budget:
        """A budget from a recipe's mapping. Raises UsageError for an unknown limit."""
        if isinstance(value, Budget):
            return value
        known = ("bytes", "latency", "memory", "drop")
        for name in value or {}:
            if name not in known:
                raise UsageError(f"budget: no limit is called {name!r}. {did_you_mean(name, known)}")
        return Budget(**(value or {}))

    def check(
        self,
        measured: Mapping[str, Measurement],
        reference: Measurement | None = None,
        result: Measurement | None = None,
    ) -> list[dict[str, Any]]:
        """One row per limit: {"limit", "allowed", "measured", "met"}.

        measured: Measurements by name (bytes, latency, peak_memory). reference, result: the main metric before and after.
        """
        rows = []
        for limit, name in (("bytes", "bytes"), ("latency", "latency"), ("memory", "peak_memory")):
            allowed = getattr(self, limit)
            if allowed is not None:
                value = measured[name].value if name in measured else None
                rows.append(
                    {
                        "limit": limit,
                        "allowed": allowed,
                        "measured": value,
                        "met": value is not None and value <= allowed,
                    }
                )
        if self.drop is not None and reference is not None and result is not None:
            allowed, relative = self._drop()
            lost = reference.value - result.value if reference.better == "higher" else result.value - reference.value
            lost = lost / abs(reference.value) if relative and reference.value else lost
            rows.append(
                {"limit": f"drop of {reference.name}", "allowed": allowed, "measured": lost, "met": lost <= allowed}
            )
        return rows
