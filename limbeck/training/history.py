"""History: what a run showed while it trained, as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class History:
    """`steps`: entries {"step", "epoch", "loss", "parts", "learning_rate", "gradient_norm"}, each the mean over the
    optimizer steps since the entry before (loss, parts) or the last of them. `evaluations`: entries {"step", "epoch",
    "split", metrics...}. `seconds`: wall time of all sessions, `samples`: training examples seen."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    samples: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> History:
        return History(**value)
