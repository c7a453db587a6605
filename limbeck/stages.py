"""Stages: the model after each step, measured in the form in which it would run.

Every stage is exported to ONNX and its quality is measured again in ONNX Runtime; a model that ONNX cannot express is measured in
torch, and says so. Speeds of all stages are timed in turn, round by round in one process, so that a machine's drift falls on all
of them alike. What was measured once is kept in out/measured and not measured again.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import __version__, artifact
from limbeck.errors import ExportError
from limbeck.exports import Exported, export_folders, export_model, form_of, refuse_lost_quality
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
from limbeck.measure.sessions import onnx_form
from limbeck.progress import bar
from limbeck.recipe import Measure
from limbeck.speed import measure_speed


@dataclass(frozen=True)
class Stage:
    """One model of a run: its name, the digest of all that decided it, and the artifact folder that holds it.

    A teacher without lineage cannot be an artifact: it has no folder and stays in memory as `model`.
    """

    name: str
    key: str
    folder: Path | None
    model: nn.Module | None = None

    def load(self, trust: Iterable[str] = ()) -> nn.Module:
        return copy.deepcopy(self.model).eval() if self.folder is None else artifact.load(self.folder, trust=trust)

    @property
    def label(self) -> str:
        """A name for files, unique in a run."""
        return self.folder.name if self.folder is not None else f"00-{self.name}-{self.key[:12]}"

    @property
    def history(self) -> dict[str, Any] | None:
        path = self.folder / "history.json" if self.folder is not None else None
        return json.loads(path.read_text()) if path is not None and path.exists() else None


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
    exports: list[Exported]


def measure_stages(
    stages: Sequence[Stage],
    task: Any,
    settings: Measure,
    folder: Path,
    exports: Sequence[str | Mapping[str, Any]],
    progress: bool = True,
    trust: Iterable[str] = (),
) -> Measurements:
    """Measure every stage, and every further export of the last one."""
    asked = dict(map(form_of, exports))
    jobs = [(stage, "onnx") for stage in stages]
    jobs += [(stages[-1], form) for form in asked if form.startswith("onnx_")]
    rows = []
    with bar("measure quality", len(jobs), progress) as shown:
        for number, (stage, form) in enumerate(jobs):
            final = stage is stages[-1] and form in asked
            rows.append(_measure_stage(stage, form, asked.get(form, {}), task, settings, folder, trust, final))
            shown.update(number + 1, rows[-1].name)
    owners = [stage for stage, _ in jobs]

    def open_form(index: int) -> Path | nn.Module:
        return rows[index].file or owners[index].load(trust)

    keys = [f"{stage.key} {form}" for stage, form in jobs]
    speeds = measure_speed([row.form for row in rows], keys, open_form, task, settings, folder / "speed.json", progress)
    for row, speed in zip(rows, speeds):
        row.speed = speed
    made = [
        Exported(form, row.file, row.file.stat().st_size, row.difference)
        for row, (_, form) in list(zip(rows, jobs))[len(stages) - 1 :]
        if form in asked and row.file is not None
    ]
    return Measurements(rows, made + export_folders(stages[-1].load(trust), task, folder, exports, settings))


def _measure_stage(
    stage: Stage,
    form: str,
    chosen: Mapping[str, Any],
    task: Any,
    settings: Measure,
    folder: Path,
    trust: Iterable[str],
    final: bool,
) -> Measured:
    name = stage.name if form == "onnx" else form
    base = folder / f"{stage.label}-{form}"
    asked = digest(
        {
            "split": settings.split,
            "limit": settings.limit,
            "threads": settings.threads,
            "version": __version__,
            "data": task.digest(),
            **({"export": dict(chosen)} if chosen else {}),
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
        difference = export_model(model, task, path, {"form": form, **chosen}).difference
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
        counts = [model_bytes(model)]
        if stage.folder is not None:
            counts.append(peak_memory_artifact(stage.folder, task, 1, settings.threads, runs=1, trust=tuple(trust)))
    counts += [parameters(model), flops(model, task)]
    where = onnx_form(path) if onnx else next(iter(quality.measurements.values())).where
    row = Measured(
        name, stage.name, where, path if onnx else None, quality, counts, layer_table(model), notes, difference
    )
    write_json(record, {**_record(row), "asked": asked})
    return row


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
        "exports": [one.to_json() for one in measured.exports],
    }
