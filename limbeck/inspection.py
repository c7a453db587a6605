"""What the commands `measure`, `export`, `quantize` and `report` do with artifacts, runs and ONNX files that are there already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from limbeck import artifact, vocabulary
from limbeck.errors import ArtifactError, UsageError
from limbeck.measure import Measurement
from limbeck.measure.size import state_bytes


def task_of(folder: Path, given: str | None, trust: Iterable[str] = ()) -> Any:
    """The task: given as YAML, or the one in the recipe of the artifact. Raises UsageError when neither is there."""
    if given is not None:
        try:
            return vocabulary.construct(yaml.safe_load(given), "task", "--task", trust)
        except yaml.YAMLError as error:
            raise UsageError(f"--task is not YAML: {error}") from None
    recipe = folder / "recipe.yaml"
    spec = yaml.safe_load(recipe.read_text()) if recipe.is_file() else None
    if not isinstance(spec, dict) or "task" not in spec:
        raise UsageError(
            f"{folder} does not say what its task is: give --task, e.g. --task '{{class: ImageClassification, dataset: digits}}'"
        )
    return vocabulary.construct(spec["task"], "task", "task", trust)


def artifact_folder(path: Path) -> Path:
    """The artifact itself, also when the run's folder was named. Raises ArtifactError for neither."""
    for folder in (path, path / "artifact"):
        if artifact.is_artifact(folder):
            return folder
    raise ArtifactError(f"{path} is neither an artifact nor a run of `limbeck compress`")


def measure_path(
    path: Path, task: str | None, *, threads: int, batch_size: int, split: str, trust: tuple[str, ...]
) -> dict[str, Measurement]:
    """Quality and cost of an ONNX file in ONNX Runtime, or of an artifact in torch."""
    from limbeck.measure import latency_onnx, latency_torch, measure_model, measure_onnx

    if path.suffix == ".onnx":
        if task is None and artifact.is_artifact(path.parent.parent):
            found = task_of(path.parent.parent, None, trust)
        else:
            found = task_of(path.parent, task, trust)
        measured = measure_onnx(path, found, split, threads=threads)
        return measured if batch_size == 1 else measured | {"latency": latency_onnx(path, found, batch_size, threads)}
    folder = artifact_folder(path)
    found = task_of(folder, task, trust)
    model = artifact.load(folder, trust=trust)
    measured = measure_model(model, found, split, threads=threads)
    if batch_size != 1 and "latency" in measured:
        measured["latency"] = latency_torch(model, found, batch_size, threads)
    return measured


def export_path(
    path: Path, out: Path, form: str, settings: str | None = None, *, trust: tuple[str, ...]
) -> dict[str, Any]:
    """Write one export of an artifact, checked against the model; the quality is measured again where it runs.

    settings: of the form, as YAML: "{accuracy_level: 1}".
    """
    from limbeck.exports import export_model, form_of, refuse_lost_quality
    from limbeck.recipe import Measure

    name, chosen = form_of({"form": form, **_settings(settings)})
    folder = artifact_folder(path)
    model = artifact.load(folder, trust=trust)
    task = task_of(folder, None, trust)
    done = export_model(model, task, out, {"form": name, **chosen})
    quality = refuse_lost_quality(model, task, out, Measure(), name)
    made = {"name": form, "file": str(out), "bytes": done.bytes, "difference": done.difference}
    return made if quality is None else {**made, "quality": quality}


def _settings(text: str | None) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text) if text is not None else {}
    except yaml.YAMLError as error:
        raise UsageError(f"--settings is not YAML: {error}") from None
    if not isinstance(found, dict):
        raise UsageError(f"--settings must be a mapping such as '{{accuracy_level: 1}}', not {text!r}")
    return found


def quantize_path(
    path: Path,
    out: Path,
    bits: float,
    task: str | None,
    method: str | None,
    seed: int | None,
    embeddings: int,
    *,
    trust: tuple[str, ...],
    progress: bool,
) -> dict[str, Any]:
    """Write the quantized form of an artifact as an artifact. task: YAML, "own" for that of the artifact's recipe, or None: no data."""
    from limbeck.quantization.grids import IDENTITY_BITS
    from limbeck.quantized import quantize

    folder = artifact_folder(path)
    model = artifact.load(folder, trust=trust)
    data = None if task is None else task_of(folder, None if task == "own" else task, trust)
    width = int(bits) if bits == int(bits) else bits
    tables = None if embeddings == IDENTITY_BITS else embeddings
    made = quantize(model, width, data, method=method, embeddings=tables, seed=seed, progress=progress)
    recipe = folder / "recipe.yaml"  # what it was made by, and its task
    if recipe.is_file():
        made.save(out, recipe=recipe.read_text())
    else:
        made.save(out, recipe=None if data is None else {"task": vocabulary.describe(data)})
    return {"artifact": str(out), "before": state_bytes(model.state_dict()), **made.to_json()}


def report_of(path: Path) -> tuple[dict[str, Any], Path]:
    """The report of a run or an artifact, and the folder a page belongs in."""
    folder = artifact_folder(path)
    return artifact.read_report(folder), path


def measurements_table(found: dict[str, Measurement]) -> Any:
    """Measurements as a table for the terminal."""
    from rich.table import Table

    table = Table()
    for title in ("measurement", "value", "quartiles", "runs", "where"):
        table.add_column(title, justify="right" if title in ("value", "runs") else "left")
    for name, m in found.items():
        spread = "" if m.runs == 1 or m.low is None else f"{m.low:.4g} .. {m.high:.4g}"
        table.add_row(name, f"{m.value:,.6g} {m.unit}".strip(), spread, str(m.runs), m.where)
    return table
