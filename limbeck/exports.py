"""Exports of a run's result: each is checked against the model in torch, and its quality is measured again where it runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import export
from limbeck.errors import UsageError, did_you_mean
from limbeck.export.onnx import is_quantized
from limbeck.measure import disk_bytes, quality_torch
from limbeck.recipe import Measure

# form of an export -> its name in the artifact's exports/
EXPORTS = {
    "onnx": "model.onnx",
    "onnx_int8": "model-int8.onnx",
    "onnx_int8_dynamic": "model-int8-dynamic.onnx",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
}


@dataclass(frozen=True)
class Exported:
    """One export: its form, where it was written, its size, and the largest relative difference to torch's outputs."""

    name: str
    path: Path
    bytes: int
    difference: float

    def to_json(self) -> dict[str, Any]:
        """As a row of the report."""
        made = {**asdict(self), "file": f"exports/{EXPORTS[self.name]}"}
        del made["path"]
        return made


def export_model(model: nn.Module, task: Any, path: Path, form: str) -> Exported:
    """Write one export, checked against the model's outputs.

    form: "onnx" (float32, or int8 for a model that is quantized), "onnx_int8", "onnx_int8_dynamic", or "transformers" and
    "sentence_transformers", which write a folder. Raises ExportError and leaves nothing behind when the outputs differ.
    """
    if form not in EXPORTS:
        raise UsageError(f"no export is called {form!r}. {did_you_mean(form, EXPORTS)}")
    if form.startswith("onnx"):
        own = "int8" if is_quantized(model) else "float32"
        precision = {"onnx": own, "onnx_int8": "int8", "onnx_int8_dynamic": "int8_dynamic"}[form]
        done = export.export_onnx(model, task, path, precision=precision)
        return Exported(form, path, done.bytes, done.difference)
    difference = getattr(export, f"export_{form}")(model, task, path)
    return Exported(form, path, int(disk_bytes(path).value), float(difference))


def refuse_lost_quality(model: nn.Module, task: Any, path: Path, settings: Measure, tolerance: float = 0.01) -> None:
    """Compare the main metric of the model in torch and of its export on at most 1,000 validation examples.

    An export may lose `tolerance` of the metric, and two examples' worth of noise. Raises ExportError when it lost more.
    """
    limit = min(task.size("validation"), 1000)
    before = quality_torch(model, task, "validation", limit=limit).measurements
    allowed = tolerance * abs(before[task.metric].value) + 2.0 / limit
    runner = export.OnnxModel(path, settings.threads)
    export.check_quality(runner, task, {n: m.value for n, m in before.items()}, allowed, limit=limit)


def export_folders(model: nn.Module, task: Any, folder: Path, forms: Sequence[str]) -> list[Exported]:
    """The exports that are folders, such as the transformers layout, each written anew."""
    made = []
    for form in forms:
        if not form.startswith("onnx"):
            shutil.rmtree(folder / EXPORTS[form], ignore_errors=True)
            made.append(export_model(model, task, folder / EXPORTS[form], form))
    return made


def files_of(exported: Iterable[Exported]) -> dict[str, Path]:
    """{name inside an artifact: file or folder} of exports."""
    return {f"exports/{EXPORTS[one.name]}": one.path for one in exported}
