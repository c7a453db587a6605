"""Beds: small real set-ups that many miniatures share (data, a reference model, a schedule, what it must reach).

A bed is a frozen dataclass. It knows nothing of papers. What differs between domains (a Task, a graph, a noise schedule) are
its own methods; what every bed has is below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


class Bed:
    """Base of every bed. `name`: a word for ledgers. `expects`: metric to (lowest, highest) that `reference` must reach on the
    test split; a slow test holds the bed to it."""

    name: str = ""
    expects: Mapping[str, tuple[float, float]] = {}

    def digest(self) -> str:
        """Hexadecimal digest of the data and the settings that decide what a model sees."""
        raise NotImplementedError

    def reference(self, run: Run) -> dict[str, float]:
        """Train the bed's own reference model with `run` and measure it on `run.split`."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """The dataclass's fields, but for what `reference` must reach."""
        return {key: value for key, value in asdict(self).items() if key != "expects"}

    def describe(self) -> dict[str, Any]:
        """What the ledger says about the bed."""
        return {"name": self.name, "digest": self.digest()}

    def collections(self) -> tuple[str, ...]:
        """Names of the data collections it reads (folders under LIMBECK_DATA), so that they can travel to other machines."""
        dataset = getattr(self, "dataset", None)
        return (dataset,) if isinstance(dataset, str) and dataset != "digits" else ()
