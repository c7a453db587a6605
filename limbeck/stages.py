"""Stages: the model after each step, measured in the form in which it would run.

Every stage is exported to ONNX and its quality is measured again in ONNX Runtime; a model that ONNX cannot express is measured in
torch, and says so. Speeds of all stages are timed in turn, round by round in one process, so that a machine's drift falls on all
of them alike. What was measured once is kept in out/measured and not measured again.
"""

from __future__ import annotations

import datetime
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import __version__, artifact
from limbeck.errors import ExportError, UsageError, did_you_mean
from limbeck.export import OnnxModel, check_quality
from limbeck.files import digest, write_json
from limbeck.measure import (
    Measurement,
    Quality,
    disk_bytes,
    environment,
    flops,
    layer_table,
    model_bytes,
    parameters,
    peak_memory_artifact,
    peak_memory_onnx,
    quality_onnx,
    quality_torch,
)
from limbeck.measure.latency import as_throughput
from limbeck.measure.sessions import feeds, onnx_form, open_session
from limbeck.progress import bar
from limbeck.recipe import Measure
from limbeck.signals import call

EXPORTS = ("onnx", "onnx_int8", "onnx_int8_dynamic", "transformers", "sentence_transformers")


@dataclass(frozen=True)
class Stage:
    """One model of a run: its name, the digest of all that decided it, and the artifact folder that holds it."""

    name: str
    key: str
    folder: Path

    def load(self, trust: Iterable[str] = ()) -> nn.Module:
        return artifact.load(self.folder, trust=trust)

    @property
    def history(self) -> dict[str, Any] | None:
        path = self.folder / "history.json"
        return json.loads(path.read_text()) if path.exists() else None


@dataclass
class Measured:
    """One row of the report before it is written: where it runs, and what was found."""

    name: str
    step: str
    form: str
    file: Path | None
    quality: Quality
    counts: list[Measurement]
    layers: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    difference: float | None = None
    speed: list[Measurement] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        found = [*self.quality.measurements.values(), *self.counts, *self.speed]
        made = {
            "name": self.name,
            "step": self.step,
            "form": self.form,
            "notes": self.notes,
            "measurements": {m.name: m.to_json() for m in found},
            "layers": self.layers,
        }
        return made | ({"reliability": self.quality.reliability} if self.quality.reliability else {})


@dataclass(frozen=True)
class Measurements:
    """All rows, and the files that go into the artifact's `exports/`."""

    rows: list[Measured]
    exports: dict[str, Path]


def measure_stages(
    stages: Sequence[Stage],
    task: Any,
    settings: Measure,
    folder: Path,
    exports: Sequence[str],
    progress: bool = True,
    trust: Iterable[str] = (),
) -> Measurements:
    """Measure every stage, and every further export of the last one."""
    jobs = [(stage, "onnx") for stage in stages]
    jobs += [(stages[-1], form) for form in exports if form.startswith("onnx_")]
    rows = []
    with bar("measure quality", len(jobs), progress) as shown:
        for number, (stage, form) in enumerate(jobs):
            rows.append(_measure_stage(stage, form, task, settings, folder, trust, final=stage is stages[-1]))
            shown.update(number + 1, rows[-1].name)
    _measure_speed(rows, stages, task, settings, folder, progress, trust)
    files = {row.file.name.partition("-")[2]: row.file for row in rows[len(stages) - 1 :] if row.file is not None}
    chosen = {
        _export_name(form): path for form, path in zip(("onnx", *(f for _, f in jobs[len(stages) :])), files.values())
    }
    if "onnx" not in exports:
        chosen.pop(_export_name("onnx"), None)
    return Measurements(rows, chosen)


def _export_name(form: str) -> str:
    return {"onnx": "model.onnx", "onnx_int8": "model-int8.onnx", "onnx_int8_dynamic": "model-int8-dynamic.onnx"}[form]


def _measure_stage(
    stage: Stage, form: str, task: Any, settings: Measure, folder: Path, trust: Iterable[str], final: bool
) -> Measured:
    name = stage.name if form == "onnx" else form
    base = folder / f"{stage.folder.name}-{form}"
    asked = digest(
        {
            "split": settings.split,
            "limit": settings.limit,
            "threads": settings.threads,
            "version": __version__,
            "data": task.digest(),
        }
    )
    record = base.with_suffix(".json")
    path = base.with_suffix(".onnx")
    if record.exists():
        found = json.loads(record.read_text())
        if found.get("asked") == asked and (found["file"] is None or path.exists()):
            return _from_record(found, path)
    model = stage.load(trust)
    notes, difference = [], None
    try:
        difference = export_model(model, task, path, form)["difference"]
        onnx = True
    except ExportError as error:
        if final:
            raise
        onnx, notes = False, [f"measured in torch: {error}"]
    if onnx:
        quality = quality_onnx(path, task, settings.split, limit=settings.limit, threads=settings.threads)
        counts = [disk_bytes(path), peak_memory_onnx(path, task, 1, settings.threads, runs=1)]
        refuse_lost_quality(model, task, path, settings)
    else:
        quality = quality_torch(model, task, settings.split, limit=settings.limit)
        counts = [
            model_bytes(model),
            peak_memory_artifact(stage.folder, task, 1, settings.threads, runs=1, trust=tuple(trust)),
        ]
    counts += [parameters(model), flops(model, task)]
    where = onnx_form(path) if onnx else next(iter(quality.measurements.values())).where
    row = Measured(
        name, stage.name, where, path if onnx else None, quality, counts, layer_table(model), notes, difference
    )
    write_json(record, {**_record(row), "asked": asked})
    return row


def export_model(model: nn.Module, task: Any, path: Path, form: str) -> dict[str, Any]:
    """Write one export, checked against the model's outputs: {"name", "file", "bytes", "difference"}.

    form: "onnx" (float32, or int8 for a model that is quantized), "onnx_int8", "onnx_int8_dynamic", or "transformers" and
    "sentence_transformers", which write a folder. Raises ExportError and leaves nothing behind when the outputs differ.
    """
    from limbeck import export
    from limbeck.export.onnx import is_quantized

    if form not in EXPORTS:
        raise UsageError(f"no export is called {form!r}. {did_you_mean(form, EXPORTS)}")
    if form.startswith("onnx"):
        precision = {
            "onnx": "int8" if is_quantized(model) else "float32",
            "onnx_int8": "int8",
            "onnx_int8_dynamic": "int8_dynamic",
        }
        done = export.export_onnx(model, task, path, precision=precision[form])
        return {"name": form, "file": str(path), "bytes": done.bytes, "difference": done.difference}
    difference = getattr(export, f"export_{form}")(model, task, path)
    return {"name": form, "file": str(path), "bytes": int(disk_bytes(path).value), "difference": difference}


def refuse_lost_quality(model: nn.Module, task: Any, path: Path, settings: Measure, tolerance: float = 0.01) -> None:
    """Compare the main metric of the model in torch and of its export on at most 1,000 validation examples.

    An export may lose `tolerance` of the metric, and two examples' worth of noise. Raises ExportError when it lost more.
    """
    limit = min(task.size("validation"), 1000)
    before = quality_torch(model, task, "validation", limit=limit).measurements
    allowed = tolerance * abs(before[task.metric].value) + 2.0 / limit
    runner = OnnxModel(path, settings.threads)
    check_quality(runner, task, {n: m.value for n, m in before.items()}, allowed, limit=limit)


def _record(row: Measured) -> dict[str, Any]:
    return {
        "name": row.name,
        "step": row.step,
        "form": row.form,
        "file": row.file.name if row.file else None,
        "quality": {n: m.to_json() for n, m in row.quality.measurements.items()},
        "reliability": row.quality.reliability,
        "counts": [m.to_json() for m in row.counts],
        "layers": row.layers,
        "notes": row.notes,
        "difference": row.difference,
    }


def _from_record(found: Mapping[str, Any], path: Path) -> Measured:
    quality = Quality({n: Measurement(**m) for n, m in found["quality"].items()}, found["reliability"])
    return Measured(
        found["name"],
        found["step"],
        found["form"],
        path if found["file"] else None,
        quality,
        [Measurement(**m) for m in found["counts"]],
        found["layers"],
        found["notes"],
        found["difference"],
    )


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


def _measure_speed(
    rows: Sequence[Measured],
    stages: Sequence[Stage],
    task: Any,
    settings: Measure,
    folder: Path,
    progress: bool,
    trust: Iterable[str],
    seconds: float = 60.0,
) -> None:
    """Latency at `batch_size` and throughput at `throughput_batch_size` of every row, timed in turn, in a new order each round."""
    asked = digest(
        {
            "rows": [[row.name, row.form] for row in rows],
            "keys": [s.key for s in stages],
            "settings": settings.model_dump(),
            "version": __version__,
        }
    )
    record = folder / "speed.json"
    if record.exists():
        found = json.loads(record.read_text())
        if found.get("asked") == asked:
            for row, speed in zip(rows, found["speed"]):
                row.speed = [Measurement(**m) for m in speed]
            return
    sizes = {"latency": settings.batch_size, "throughput": settings.throughput_batch_size}
    inputs = {kind: example_of(task, size, settings.length) for kind, size in sizes.items()}
    runs = []
    for row, stage in zip(rows, [*stages, *[stages[-1]] * (len(rows) - len(stages))]):
        runs.append({kind: _runner(row, stage, batch, settings.threads, trust) for kind, batch in inputs.items()})
    order, times = random.Random(0), [{kind: [] for kind in sizes} for _ in rows]
    for kind in sizes:
        for run in runs:
            run[kind](), run[kind]()
    with bar("measure speed", settings.rounds, progress) as shown:
        for kind in sizes:
            began = time.perf_counter()
            for number in range(settings.rounds):
                for index in order.sample(range(len(rows)), len(rows)):
                    start = time.perf_counter()
                    runs[index][kind]()
                    times[index][kind].append(time.perf_counter() - start)
                shown.update(number + 1, kind)
                if time.perf_counter() - began > seconds and number >= 2:
                    break
    for row, seconds_of in zip(rows, times):
        made = {}
        for kind, size in sizes.items():
            shared = {
                "where": f"{row.form}, {settings.threads} threads, batch {size}",
                "settings": {
                    "batch_size": size,
                    "threads": settings.threads,
                    "length": settings.length,
                    "interleaved": True,
                },
            }
            made[kind] = Measurement.of_runs("latency", seconds_of[kind], unit="seconds", better="lower", **shared)
        row.speed = [made["latency"], as_throughput(made["throughput"], sizes["throughput"])]
    write_json(record, {"asked": asked, "speed": [[m.to_json() for m in row.speed] for row in rows]})


def _runner(row: Measured, stage: Stage, batch: Mapping[str, Tensor], threads: int, trust: Iterable[str]):
    if row.file is not None:
        session = open_session(row.file, threads)
        fed = feeds(session, batch)
        return lambda: session.run(None, fed)
    model = stage.load(trust)

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                call(model, batch)
        finally:
            torch.set_num_threads(before)

    return run


def assemble_report(job: Any, stages: Sequence[Stage], measured: Measurements) -> dict[str, Any]:
    """report.json: see docs/architecture.md, "Report"."""
    rows, task = measured.rows, job.task
    reference = rows[0].quality.measurements.get(task.metric)
    best = rows[-1]
    costs = {m.name: m for m in [*best.counts, *best.speed]}
    budget = job.budget.check(costs, reference, best.quality.measurements.get(task.metric))
    return {
        "format": 1,
        "name": job.name,
        "seed": job.seed,
        "created": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "environment": environment(),
        "recipe": job.spec,
        "task": {
            "name": task.name,
            "metric": task.metric,
            "better": task.better,
            "dataset": getattr(task, "dataset", ""),
        },
        "stages": [row.to_json() for row in rows],
        "training": [{"step": stage.name, "history": stage.history} for stage in stages if stage.history],
        "budget": [{**row, "stage": best.name} for row in budget],
        "exports": [
            {"name": row.name, "file": f"exports/{name}", "bytes": path.stat().st_size, "difference": row.difference}
            for (name, path), row in zip(
                measured.exports.items(), [r for r in rows if r.file in set(measured.exports.values())]
            )
        ],
    }
