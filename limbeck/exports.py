"""Exports of a run's result: each is checked against the model in torch, and its quality is measured again where it runs.

    form of an export          written by                     quality measured again in
    onnx, onnx_*               limbeck.export.onnx            ONNX Runtime
    compressed_tensors         .compressed_tensors            transformers, with the package compressed-tensors
    gptq, gguf                 .gptq, .gguf                   torch, with the weights read back from the files
    transformers, sentence_*   .transformers_folder, ...      (outputs are compared, the weights are the same floats)

A form is a name, or a mapping of its name and settings: {form: gguf, requantize: q8_0}.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck import export
from limbeck.errors import UsageError, did_you_mean
from limbeck.export.checks import refuse_loss
from limbeck.export.compressed_tensors import load_compressed_tensors
from limbeck.export.gguf import load_gguf
from limbeck.export.gptq import load_gptq
from limbeck.export.onnx import is_quantized
from limbeck.measure import disk_bytes, quality_torch
from limbeck.recipe import Measure

# form of an export -> its name in the artifact's exports/
EXPORTS = {
    "onnx": "model.onnx",
    "onnx_int8": "model-int8.onnx",
    "onnx_int8_dynamic": "model-int8-dynamic.onnx",
    "onnx_weight_only": "model-weight-only.onnx",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
    "compressed_tensors": "compressed-tensors",
    "gptq": "gptq",
    "gguf": "model.gguf",
}
SETTINGS = {"onnx": ("input_ranges",), "onnx_weight_only": ("accuracy_level",), "gguf": ("requantize", "tokenizer")}
PRECISIONS = {"onnx_int8": "int8", "onnx_int8_dynamic": "int8_dynamic", "onnx_weight_only": "weight_only"}
# quantized forms that are no ONNX -> what makes a model of what was written
READERS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "compressed_tensors": load_compressed_tensors,
    "gptq": load_gptq,
    "gguf": load_gguf,
}


@dataclass(frozen=True)
class Exported:
    """One export: its form, where it was written, its size, the largest relative difference to torch's outputs, and the metrics of
    what was written, where they are not those of a row of the report."""

    name: str
    path: Path
    bytes: int
    difference: float
    quality: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a row of the report."""
        made = {**asdict(self), "file": f"exports/{EXPORTS[self.name]}"}
        del made["path"]
        return {key: value for key, value in made.items() if value is not None or key != "quality"}


def form_of(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and settings of a form. Raises UsageError for an unknown name, and for settings that the form does not have."""
    given = dict(value) if isinstance(value, Mapping) else {"form": value}
    name = given.pop("form", None)
    if name not in EXPORTS:
        raise UsageError(f"no export is called {name!r}. {did_you_mean(str(name), EXPORTS)}")
    if unknown := set(given) - set(SETTINGS.get(name, ())):
        has = ", ".join(SETTINGS.get(name, ())) or "no settings"
        raise UsageError(f"the export {name!r} has {has}, not {sorted(unknown)[0]!r}")
    return name, given


def export_model(model: nn.Module, task: Any, path: Path, form: str | Mapping[str, Any]) -> Exported:
    """Write one export, checked against the model's outputs.

    form: "onnx" (float32, or int8 for a model that is quantized), "onnx_int8", "onnx_int8_dynamic", "onnx_weight_only" and "gguf", which
    write a file, or "transformers", "sentence_transformers", "compressed_tensors" and "gptq", which write a folder; with settings, a
    mapping. Raises ExportError and leaves nothing behind when the outputs differ.
    """
    name, settings = form_of(form)
    if name.startswith("onnx"):
        own = "int8" if is_quantized(model) else "float32"
        done = export.export_onnx(model, task, path, precision=PRECISIONS.get(name, own), **settings)
        return Exported(name, path, done.bytes, done.difference)
    difference = getattr(export, f"export_{name}")(model, task, path, **settings)
    return Exported(name, path, int(disk_bytes(path).value), float(difference))


def refuse_lost_quality(
    model: nn.Module, task: Any, path: Path, settings: Measure, form: str = "onnx", tolerance: float = 0.01
) -> dict[str, float] | None:
    """Compare the main metric of the model in torch and of its export on at most 1,000 validation examples.

    An export may lose `tolerance` of the metric, and two examples' worth of noise. Returns the export's metrics, None for forms that are
    not measured again; raises ExportError when it lost more.
    """
    if not form.startswith("onnx") and form not in READERS:
        return None
    limit = min(task.size("validation"), 1000)
    before = quality_torch(model, task, "validation", limit=limit).measurements
    allowed = tolerance * abs(before[task.metric].value) + 2.0 / limit
    reference = {n: m.value for n, m in before.items()}
    if form.startswith("onnx"):
        return export.check_quality(export.OnnxModel(path, settings.threads), task, reference, allowed, limit=limit)
    found = quality_torch(READERS[form](model, path), task, "validation", limit=limit).measurements
    metrics = {n: m.value for n, m in found.items()}
    refuse_loss(path, task, reference, metrics, allowed, f"as {form}")
    return metrics


def export_folders(
    model: nn.Module, task: Any, folder: Path, forms: Sequence[str | Mapping[str, Any]], settings: Measure
) -> list[Exported]:
    """The exports that are no ONNX files, such as the transformers layout, each written anew."""
    made = []
    for form in forms:
        name, _ = form_of(form)
        if not name.startswith("onnx"):
            path = folder / EXPORTS[name]
            shutil.rmtree(path, ignore_errors=True)
            done = export_model(model, task, path, form)
            quality = refuse_lost_quality(model, task, path, settings, name)
            made.append(Exported(done.name, done.path, done.bytes, done.difference, quality))
    return made


def files_of(exported: Iterable[Exported]) -> dict[str, Path]:
    """{name inside an artifact: file or folder} of exports."""
    return {f"exports/{EXPORTS[one.name]}": one.path for one in exported}
