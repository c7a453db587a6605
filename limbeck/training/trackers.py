"""Trackers: where a run's numbers also go, beside its history.

A tracker is a name, "tensorboard" or "mlflow" (through accelerate's), or any object with `log(values, step)` and, where it
has something to close, `finish()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from limbeck.errors import UsageError, did_you_mean, require

NAMES = ("tensorboard", "mlflow")


class Tracker(Protocol):
    """Takes named numbers at a step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...


def make_trackers(trackers: Iterable[Any], folder: Path | None, title: str, config: Mapping[str, Any]) -> list[Any]:
    """Trackers from names and objects. Raises UsageError for an unknown name, or a name without a folder to write to."""
    return [_named(t, folder, title, config) if isinstance(t, str) else _checked(t) for t in trackers]


def _checked(tracker: Any) -> Any:
    if not callable(getattr(tracker, "log", None)):
        raise UsageError(f"trackers: expected a name ({', '.join(NAMES)}) or an object with .log, got {tracker!r}")
    return tracker


def _named(name: str, folder: Path | None, title: str, config: Mapping[str, Any]) -> Any:
    if name not in NAMES:
        raise UsageError(f"trackers: {name!r} is unknown. {did_you_mean(name, NAMES)}")
    if folder is None:
        raise UsageError(f"trackers: {name!r} writes files: give the Trainer a folder")
    from accelerate import tracking

    require("tensorboard" if name == "tensorboard" else "mlflow", name)
    if name == "tensorboard":
        made = tracking.TensorBoardTracker(title, logging_dir=folder / "tensorboard")
    else:
        made = tracking.MLflowTracker(experiment_name=title, logging_dir=str(folder / "mlflow"))
    if hasattr(made, "start"):
        made.start()
    made.store_init_configuration(
        {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in config.items()}
    )
    return made


def log_all(trackers: Iterable[Any], prefix: str, entry: Mapping[str, Any], step: int) -> None:
    """Send the numbers of a history entry, nested ones as "PREFIX/parts/NAME"."""
    values = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            values |= {f"{prefix}/{name}/{inner}": float(v) for inner, v in value.items()}
        elif isinstance(value, (int, float)) and name != "step":
            values[f"{prefix}/{name}"] = float(value)
    for tracker in trackers:
        tracker.log(values, step=step)


def finish_all(trackers: Iterable[Any]) -> None:
    """Close the trackers that can be closed."""
    for tracker in trackers:
        finish = getattr(tracker, "finish", None)
        if callable(finish):
            finish()
