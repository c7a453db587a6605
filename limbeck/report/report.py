"""The report: stages with their measurements, training histories, budget and exports; the same thing as report.json.

Reading validates everything that a reader relies on, so that whoever holds a Report need not check again. The form is
the one of docs/architecture.md; a report of a newer format is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from limbeck.errors import ArtifactError, did_you_mean
from limbeck.files import write_json
from limbeck.measure.base import Measurement

FORMAT = 1
LAYER = {"path": str, "kind": str, "parameters": int, "bytes": int, "bits": (int, float)}
BIN = {"low": float, "high": float, "confidence": float, "accuracy": float, "count": int}
BUDGET = {"limit": str, "allowed": (int, float), "measured": (int, float, type(None)), "met": bool, "stage": str}
EXPORT = {"name": str, "file": str, "bytes": int, "difference": (int, float, type(None))}
TASK = {"name": str, "metric": str, "better": str, "dataset": str}


@dataclass(frozen=True)
class Stage:
    """One form of the model on its way: what step made it, how it was run, and what was measured of it."""

    name: str
    step: str
    form: str
    measurements: dict[str, Measurement] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()
    reliability: dict[str, Any] | None = None

    @property
    def runtime(self) -> str:
        """What ran it: the first word of its form (`torch`, `onnxruntime`). Speeds compare within one runtime only."""
        return self.form.split(" ")[0] if self.form else ""

    def value(self, name: str) -> float | None:
        """A measured value, or None."""
        return self.measurements[name].value if name in self.measurements else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "step": self.step,
            "form": self.form,
            "notes": list(self.notes),
            "measurements": {name: measurement.to_json() for name, measurement in self.measurements.items()},
            "layers": [dict(layer) for layer in self.layers],
            "reliability": self.reliability,
        }

    @staticmethod
    def from_json(value: Any, where: str = "stage") -> Stage:
        """Read a stage back. Raises ArtifactError that names the field."""
        _keys(value, Stage, where, required=("name", "step", "form", "measurements"))
        for name in ("name", "step", "form"):
            _is(value[name], str, f"{where}.{name}")
        where = f"{where} {value['name']!r}"
        notes = _list(value.get("notes", []), f"{where}.notes")
        for note in notes:
            _is(note, str, f"{where}.notes")
        _is(value["measurements"], dict, f"{where}.measurements")
        measurements = {
            name: _measurement(name, item, f"{where}.{name}") for name, item in value["measurements"].items()
        }
        layers = [
            _entry(layer, LAYER, f"{where}.layers") for layer in _list(value.get("layers", []), f"{where}.layers")
        ]
        return Stage(
            value["name"],
            value["step"],
            value["form"],
            measurements,
            tuple(notes),
            tuple(layers),
            _reliability(value.get("reliability"), f"{where}.reliability"),
        )


@dataclass(frozen=True)
class Report:
    """What a run did and what came out. `stages` are in order: the first is what everything is compared with."""

    name: str
    task: dict[str, Any]
    stages: tuple[Stage, ...]
    seed: int = 0
    created: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    training: tuple[dict[str, Any], ...] = ()
    budget: tuple[dict[str, Any], ...] = ()
    exports: tuple[dict[str, Any], ...] = ()

    @property
    def metric(self) -> str:
        """The task's main metric."""
        return self.task["metric"]

    @property
    def final(self) -> Stage:
        """The stage the budget was checked on, else the last one."""
        named = {entry["stage"] for entry in self.budget}
        return next((stage for stage in reversed(self.stages) if stage.name in named), self.stages[-1])

    def measured(self) -> list[str]:
        """Names of everything measured on any stage: the main metric first, then in the fixed order, then the rest."""
        found = {name for stage in self.stages for name in stage.measurements}
        order = list(dict.fromkeys((self.metric, *ORDER)))
        return [name for name in order if name in found] + sorted(found - set(order))

    def to_json(self) -> dict[str, Any]:
        made = {"format": FORMAT, **{f.name: getattr(self, f.name) for f in fields(self)}}
        made["stages"] = [stage.to_json() for stage in self.stages]
        made |= {name: [dict(entry) for entry in made[name]] for name in ("training", "budget", "exports")}
        order = (
            "format",
            "name",
            "seed",
            "created",
            "environment",
            "recipe",
            "task",
            "stages",
            "training",
            "budget",
            "exports",
        )
        return {name: made[name] for name in order}

    @staticmethod
    def of(value: Report | Mapping[str, Any]) -> Report:
        """A report from itself or from the content of report.json."""
        return value if isinstance(value, Report) else Report.from_json(dict(value))

    @staticmethod
    def from_json(value: Any) -> Report:
        """Read a report back. Raises ArtifactError that names the field for anything that is not one."""
        _is(value, dict, "report")
        version = value.get("format")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ArtifactError(f"report.format must be a whole number from 1, not {version!r}: this is no report")
        if version > FORMAT:
            raise ArtifactError(
                f"the report has format {version}, this Limbeck reads up to {FORMAT}. Install a newer Limbeck."
            )
        _keys({k: v for k, v in value.items() if k != "format"}, Report, "report", required=("name", "task", "stages"))
        for name, kind in (("name", str), ("seed", int), ("created", str), ("environment", dict), ("recipe", dict)):
            if name in value:
                _is(value[name], kind, f"report.{name}")
        task = _entry(value["task"], TASK, "report.task", others=True)
        if task["better"] not in ("higher", "lower"):
            raise ArtifactError(f"report.task.better must be 'higher' or 'lower', not {task['better']!r}")
        stages = [
            Stage.from_json(stage, f"stages[{i}]") for i, stage in enumerate(_list(value["stages"], "report.stages"))
        ]
        if not stages:
            raise ArtifactError("report.stages is empty: a report has at least one stage")
        _distinct([stage.name for stage in stages])
        budget = [
            _entry(e, BUDGET, "report.budget", others=True) for e in _list(value.get("budget", []), "report.budget")
        ]
        exports = [
            _entry(e, EXPORT, "report.exports", others=True) for e in _list(value.get("exports", []), "report.exports")
        ]
        training = [
            _training(e, f"training[{i}]") for i, e in enumerate(_list(value.get("training", []), "report.training"))
        ]
        plain = {name: value[name] for name in ("seed", "created", "environment", "recipe") if name in value}
        return Report(
            value["name"],
            task,
            tuple(stages),
            training=tuple(training),
            budget=tuple(budget),
            exports=tuple(exports),
            **plain,
        )

    def save(self, path: Path | str) -> None:
        """Write report.json whole or not at all."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path | str) -> Report:
        """Read report.json. Raises ArtifactError with the file and the reason."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except OSError as error:
            raise ArtifactError(f"cannot read the report {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"the report {path} is not JSON: {error}") from error
        try:
            return Report.from_json(value)
        except ArtifactError as error:
            raise ArtifactError(f"the report {path} is damaged: {error}") from error


ORDER = (
    "mean_iou",
    "accuracy",
    "perplexity",
    "ndcg@10",
    "loss",
    "calibration_error",
    "parameters",
    "bytes",
    "flops",
    "latency",
    "throughput",
    "peak_memory",
)


def now() -> str:
    """The time for `created`: UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def pareto(points: Iterable[tuple[float, float]], better: str) -> list[int]:
    """Indices of the points (cost, quality) that no other beats: lower cost and better quality; in order of cost."""
    points = list(points)
    sign = 1 if better == "higher" else -1

    def beats(a: int, b: int) -> bool:
        (cost_a, quality_a), (cost_b, quality_b) = points[a], points[b]
        no_worse = cost_a <= cost_b and sign * quality_a >= sign * quality_b
        return no_worse and (points[a] != points[b] or a < b)

    front = [i for i in range(len(points)) if not any(beats(j, i) for j in range(len(points)) if j != i)]
    return sorted(front, key=lambda i: points[i][0])


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON has")


def _is(value: Any, kind: Any, where: str) -> None:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if float in kinds:
        kinds = (*kinds, int)
    right = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    if not right:
        names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ArtifactError(f"{where} must be {names}, not {value!r:.60}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ArtifactError(f"{where} must be a finite number, not {value}")


def _list(value: Any, where: str) -> list[Any]:
    _is(value, list, where)
    return value


def _keys(value: Any, kind: type, where: str, required: Iterable[str]) -> None:
    _is(value, dict, where)
    known = {f.name for f in fields(kind)}
    for name in value:
        if name not in known:
            raise ArtifactError(f"{where} has an unknown field {name!r}. {did_you_mean(name, known)}")
    for name in required:
        if name not in value:
            raise ArtifactError(f"{where} lacks the field {name!r}")


def _entry(value: Any, form: Mapping[str, Any], where: str, others: bool = False) -> dict[str, Any]:
    _is(value, dict, where)
    for name, kind in form.items():
        if name not in value:
            raise ArtifactError(f"{where} lacks the field {name!r}")
        _is(value[name], kind, f"{where}.{name}")
    extra = set(value) - set(form)
    if extra and not others:
        raise ArtifactError(f"{where} has unknown fields {sorted(extra)}")
    return value


def _measurement(name: str, value: Any, where: str) -> Measurement:
    _keys(value, Measurement, where, required=("name", "value"))
    if value["name"] != name:
        raise ArtifactError(f"{where} is filed under {name!r} but named {value['name']!r}")
    _is(value["value"], float, f"{where}.value")
    for bound in ("low", "high"):
        _is(value.get(bound), (float, type(None)), f"{where}.{bound}")
    for key, kind in (("unit", str), ("where", str), ("runs", int), ("settings", dict)):
        if key in value:
            _is(value[key], kind, f"{where}.{key}")
    made = Measurement(**value)
    if made.better not in ("higher", "lower") or made.runs < 1:
        raise ArtifactError(
            f"{where}: better must be 'higher' or 'lower' and runs at least 1, not {made.better!r}, {made.runs}"
        )
    if made.low is not None and made.high is not None and not made.low <= made.value <= made.high:
        raise ArtifactError(f"{where}: {made.value} does not lie between its quartiles {made.low} and {made.high}")
    return made


def _reliability(value: Any, where: str) -> dict[str, Any] | None:
    if value is None:
        return None
    _entry(value, {"bins": list, "error": float}, where)
    for number, row in enumerate(value["bins"]):
        _entry(row, BIN, f"{where}.bins[{number}]")
    return value


def _training(value: Any, where: str) -> dict[str, Any]:
    _entry(value, {"step": str, "history": dict}, where, others=True)
    history = value["history"]
    for name in ("steps", "evaluations"):
        for number, row in enumerate(_list(history.get(name, []), f"{where}.history.{name}")):
            _entry(row, {"step": int}, f"{where}.history.{name}[{number}]", others=True)
            for key, item in row.items():
                if isinstance(item, float):
                    _is(item, float, f"{where}.history.{name}[{number}].{key}")
    return value


def _distinct(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ArtifactError(f"two stages are named {twice[0]!r}: every stage needs a name of its own")
