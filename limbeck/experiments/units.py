"""Units: one (paper, arm, seed, settings) run in a process of its own, on one thread, and kept under a digest of all that decides it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from limbeck.errors import LimbeckError, UsageError, did_you_mean
from limbeck.experiments.catalogue import paper_files
from limbeck.experiments.paper import Paper
from limbeck.experiments.sources import sources
from limbeck.files import digest, write_json
from limbeck.folders import store_folder

THREADS = 1  # of every unit, however many run at once: the same numbers with any --jobs


@dataclass(frozen=True)
class Unit:
    """What one process runs. `settings` are all keyword settings of the arm, already chosen."""

    paper: str
    arm: str
    seed: int
    split: str
    settings: dict[str, Any]

    def key(self, fingerprint: str) -> str:
        return digest({**asdict(self), "fingerprint": fingerprint, "threads": THREADS})


def load_paper(name: str) -> Paper:
    """The paper of `limbeck/papers/<name>.py`, or of one's own module by dotted path ("mylab.papers.method").

    Raises UsageError for a name that is not there, with the near ones, and for a module without a `paper`.
    """
    found = getattr(_module(name), "paper", None)
    if not isinstance(found, Paper):
        raise UsageError(f"{name!r} has no `paper = Paper(...)`")
    return found


def _module(name: str) -> ModuleType:
    if "." in name:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and name.startswith(error.name):
                raise UsageError(f"no module {name!r}: give a dotted path that Python can import") from error
            raise
    if name not in paper_files():
        raise UsageError(f"no paper {name!r}. {did_you_mean(name, paper_files())} `limbeck papers list` shows all")
    return importlib.import_module(f"limbeck.papers.{name}")


def fingerprint(name: str) -> str:
    """Digest of what decides a paper's numbers: the sources of its file, of its beds and of all they use; the beds' settings and data."""
    paper = load_paper(name)
    found = sources(_module(name))
    for bed in paper.miniature.beds:
        found |= sources(inspect.getmodule(type(bed)))
    return digest({"sources": found, "beds": [bed.describe() for bed in paper.miniature.beds]})


def results_folder() -> Path:
    """Where finished units are kept, so that a run that was cut off goes on."""
    return store_folder() / "units"


def finished(unit: Unit, mark: str) -> dict[str, Any] | None:
    """What an earlier run measured for this unit; None when nobody did, or its file is damaged."""
    path = results_folder() / unit.paper / f"{unit.key(mark)}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def keep(unit: Unit, mark: str, result: dict[str, Any]) -> None:
    """Keep what a unit measured."""
    write_json(results_folder() / unit.paper / f"{unit.key(mark)}.json", {"unit": asdict(unit), **result})


def execute(unit: Unit, exchange: Any = None) -> dict[str, Any]:
    """Run a unit here and return {"metrics", "costs", "notes", "seconds", "store"}.

    Raises LimbeckError when the arm returns something else than finite numbers by name.
    """
    from limbeck.experiments.exchange import bring_data
    from limbeck.experiments.run import Run
    from limbeck.experiments.store import Store
    from limbeck.training.randomness import derived_seed, restored_generators, seed_everything

    paper = load_paper(unit.paper)
    bring_data(paper, exchange)
    run = Run(unit.seed, unit.split, Store(exchange=exchange))
    begun = time.perf_counter()
    with one_thread(), restored_generators():
        seed_everything(derived_seed(unit.seed, "unit"))
        metrics = paper.arms[unit.arm].run(run, **unit.settings)
    seconds = time.perf_counter() - begun
    where = f"{unit.paper}, arm {unit.arm}, seed {unit.seed}"
    if not metrics:
        raise LimbeckError(f"{where}: the arm returned no metrics")
    for metric, value in metrics.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise LimbeckError(f"{where}: {metric} is {value!r}, not a finite number")
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "costs": run.costs,
        "notes": run.notes,
        "seconds": seconds - run.store.seconds,
        "store": run.store.used,
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch on `THREADS` threads while the block runs: sums are added in the same order on every machine load."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
