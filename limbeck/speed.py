"""Speed of all stages side by side: timed in turn, round by round in one process, in a new order each round."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import __version__
from limbeck.files import digest, write_json
from limbeck.measure import Measurement
from limbeck.measure.latency import as_throughput, evaluating, torch_threads
from limbeck.measure.sessions import feeds, open_session
from limbeck.progress import bar
from limbeck.recipe import Measure
from limbeck.signals import call

SECONDS = 60.0  # per batch size, after which no further round begins (three are always timed)


def example_of(task: Any, batch_size: int, length: int | None = None) -> dict[str, Tensor]:
    """The task's example inputs; with `length`, token inputs (B, L) are repeated or cut to that many tokens, none of them padding."""
    batch = dict(task.example(batch_size))
    if length is None:
        return batch
    for name, value in batch.items():
        if value.ndim == 2 and not value.is_floating_point():
            real = value[:, : max(1, int(batch["attention_mask"].sum(1).min()))] if "attention_mask" in batch else value
            repeats = -(-length // real.shape[1])
            batch[name] = (
                torch.ones_like(value[:, :1]).repeat(1, length)
                if name == "attention_mask"
                else real.repeat(1, repeats)[:, :length]
            )
    return batch


def measure_speed(
    forms: Sequence[str],
    keys: Sequence[str],
    open_form: Callable[[int], Path | nn.Module],
    task: Any,
    settings: Measure,
    record: Path,
    progress: bool = True,
) -> list[list[Measurement]]:
    """Latency at `batch_size` and throughput at `throughput_batch_size` of every form, [latency, throughput] for each.

    forms: what runs, in words. keys: what decides each. open_form(i): the ONNX file, or the torch model, of form i. record: a file that keeps
    the numbers; they are measured anew when anything they depend on has changed.
    """
    asked = digest(
        {"forms": list(forms), "keys": list(keys), "settings": settings.model_dump(), "version": __version__}
    )
    if record.exists():
        found = json.loads(record.read_text())
        if found.get("asked") == asked:
            return [[Measurement(**m) for m in speed] for speed in found["speed"]]
    sizes = {"latency": settings.batch_size, "throughput": settings.throughput_batch_size}
    inputs = {kind: example_of(task, size, settings.length) for kind, size in sizes.items()}
    opened = [open_form(index) for index in range(len(forms))]
    runs = [{kind: _runner(what, batch, settings.threads) for kind, batch in inputs.items()} for what in opened]
    times = {kind: _rounds([run[kind] for run in runs], settings.rounds, kind, progress) for kind in sizes}
    made = []
    for index, form in enumerate(forms):
        both = {}
        for kind, size in sizes.items():
            where = f"{form}, {settings.threads} thread{'s' * (settings.threads != 1)}, batch {size}"
            detail = {"batch_size": size, "threads": settings.threads, "length": settings.length, "interleaved": True}
            both[kind] = Measurement.of_runs(
                "latency", times[kind][index], unit="seconds", better="lower", where=where, settings=detail
            )
        made.append([both["latency"], as_throughput(both["throughput"], sizes["throughput"])])
    write_json(record, {"asked": asked, "speed": [[m.to_json() for m in speed] for speed in made]})
    return made


def _rounds(runs: Sequence[Callable[[], Any]], rounds: int, title: str, progress: bool) -> list[list[float]]:
    order, times = random.Random(0), [[] for _ in runs]
    for run in runs:
        run(), run()
    began = time.perf_counter()
    with bar(f"measure {title}", rounds, progress) as shown:
        for number in range(rounds):
            for index in order.sample(range(len(runs)), len(runs)):
                start = time.perf_counter()
                runs[index]()
                times[index].append(time.perf_counter() - start)
            shown.update(number + 1)
            if time.perf_counter() - began > SECONDS and number >= 2:
                break
    return times


def _runner(what: Path | nn.Module, batch: Mapping[str, Tensor], threads: int) -> Callable[[], Any]:
    if isinstance(what, Path):
        session = open_session(what, threads)
        fed = feeds(session, batch)
        return lambda: session.run(None, fed)

    def run() -> None:
        with torch_threads(threads), evaluating(what):
            call(what, batch)

    return run
