"""What a trained language model loses when it is exported: perplexity of every quantized form where others read it. Writes docs/exported_forms.json and .md.

    python benchmarks/exported_forms.py                          every source with rows that are not in the JSON yet
    python benchmarks/exported_forms.py --only 4:gptq --python ENVIRONMENT/bin/python    with gptqmodel, which that environment holds
    python benchmarks/exported_forms.py --write                  only the page, from what the JSON holds

The model is the llama of `small_llama.py`, 12 million parameters, quantized by `limbeck.quantize` (calibrated on 64 examples where the method reads data,
products in float32), and written by the exporters of `limbeck.exports`. Perplexity is that of `quantization_table.py`: 100 blocks of gsm8k's validation
text, 150 of its test text. A change is relative to the quantized model in memory, of `requantize` to the float model. Logits: the largest difference on 8
validation blocks, relative to the largest logit; where all of them are equal bit for bit, perplexity is not computed again (`same`; with --all it is).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quantization_cells import SUBJECTS
from torch import Tensor, nn

import limbeck as lb
from limbeck.errors import LimbeckError
from limbeck.export import OnnxModel
from limbeck.export.gguf import load_gguf
from limbeck.export.gptq import load_gptq
from limbeck.exports import EXPORTS, export_model
from limbeck.files import write_json, write_text
from limbeck.measure import disk_bytes
from limbeck.signals import call, first_tensor

ROOT = Path(__file__).resolve().parents[1]
FILE, PAGE = ROOT / "docs" / "exported_forms.json", ROOT / "docs" / "exported_forms.md"
SUBJECT = SUBJECTS["language"]
SPLITS = ("validation", "test")
MEMORY, GPTQMODEL = "in memory", "gptqmodel"
Forward = Callable[[Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Source:
    """A quantized model, and the forms it is written in: those it fits, and those that say why not."""

    bits: int
    method: str
    forms: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        changed = [f"{name} {'float' if value is None else value}" for name, value in self.settings.items()]
        return ", ".join((f"{self.bits} {self.method}", *changed))

    def model(self, task: Any) -> nn.Module:
        model = SUBJECT.load().eval()
        if self.bits == 32:
            return model
        fixed = {"examples": SUBJECT.examples, "compute": "float32", "seed": 0}
        return lb.quantize(model, self.bits, task, method=self.method, **fixed, **self.settings).model


ALL = ("compressed_tensors", "gptq", "gguf", "onnx_weight_only", "onnx", "artifact")
SETTINGS = {"gguf": "requantize", "onnx": "input_ranges"}  # what the second word of a form is
FLOAT_HEAD = {"ends": None}  # the head in float: one width and one group size in all quantized layers
HALF_SCALES = {"scale_type": "float16"}  # as GPTQ and GGUF files store them
SOURCES = (
    Source(32, "float32", ("gguf q8_0", "gguf q5_0", "gguf q4_1", "gguf q4_0")),
    Source(8, "dynamic", (*ALL, "onnx tensor")),
    Source(8, "nearest", ALL[:-1], HALF_SCALES),
    Source(6, "ranges", ("gguf",), FLOAT_HEAD),
    Source(4, "gptq", ALL, FLOAT_HEAD),
    Source(4, "hqq", ALL[:-1]),
    Source(4, "hqq", ("gguf",), HALF_SCALES),
    Source(4, "nearest", ("gguf",), {**FLOAT_HEAD, "group_size": 256}),
    Source(3, "ranges", ("gptq", "gguf"), FLOAT_HEAD),
)


def _torch(model: nn.Module) -> Forward:
    return lambda batch: first_tensor(call(model, batch))


def _transformers(path: Path) -> nn.Module:
    """What `from_pretrained` makes of a file or a folder, with the settings that docs/quantization.md names."""
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPTQConfig

    if path.suffix == ".gguf":
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()
    stored, more = json.loads((path / "config.json").read_text())["quantization_config"], {}
    if stored["quant_method"] == "gptq":
        more["quantization_config"] = GPTQConfig(bits=stored["bits"], backend="torch")
    elif not all(group["weights"]["symmetric"] for group in stored["config_groups"].values()):
        more["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path, **more).eval()


# form -> reader, with the package whose version counts -> (quantized model, path) -> logits of a batch
Reader = Callable[[nn.Module, Path], Forward]
TRANSFORMERS: Reader = lambda model, path: _torch(_transformers(path))  # noqa: E731
READERS: dict[str, dict[tuple[str, ...], Reader]] = {
    "artifact": {("limbeck",): lambda model, path: _torch(lb.load(path))},
    "onnx": {("onnxruntime",): lambda model, path: OnnxModel(path, 1)},
    "onnx_weight_only": {("onnxruntime",): lambda model, path: OnnxModel(path, 1)},
    "compressed_tensors": {("transformers", "compressed-tensors"): TRANSFORMERS},
    "gptq": {("limbeck",): lambda model, path: _torch(load_gptq(model, path))},
    "gguf": {
        ("limbeck", "gguf"): lambda model, path: _torch(load_gguf(model, path)),
        ("transformers", "gguf"): TRANSFORMERS,
    },
}


def readers(form: str) -> dict[tuple[str, ...], Reader]:
    """Of `gguf q8_0` and its like, transformers alone: the exporter compares with our own reader."""
    kind, _, setting = form.partition(" ")
    alone = kind == "gguf" and setting
    return {names: read for names, read in READERS[kind].items() if not alone or read is TRANSFORMERS}


def written(model: nn.Module, task: Any, form: str, folder: Path) -> Path:
    """The file or folder of a form."""
    kind, _, setting = form.partition(" ")
    path = folder / EXPORTS.get(kind, "artifact")
    if kind == "artifact":
        return lb.save(model, path)
    return export_model(model, task, path, {"form": kind} | ({SETTINGS[kind]: setting} if setting else {})).path


def figures(forward: Forward) -> dict[str, float]:
    """Perplexity of both splits, as in the quantization table."""
    task = SUBJECT.task()
    return {s: task.evaluate(forward, s, batch_size=32, limit=SUBJECT.limits[s])[SUBJECT.metric] for s in SPLITS}


def logits(forward: Forward) -> Tensor:
    """Of the first 8 validation blocks."""
    with torch.no_grad():
        return forward(next(iter(SUBJECT.task().batches("validation", 8, limit=8)))).float()


def versions(names: tuple[str, ...]) -> str:
    found = {name: importlib.metadata.version(name) for name in names if name != "limbeck"}
    return ", ".join(" ".join((name, found.get(name, ""))).strip() for name in names)


def block_types(path: Path) -> str:
    """The types of a GGUF file's quantized tensors."""
    from gguf import GGUFReader

    return ", ".join(sorted({t.tensor_type.name for t in GGUFReader(str(path)).tensors} - {"F32", "F16", "BF16"}))


def elsewhere(python: str, path: Path, folder: Path) -> tuple[dict[str, Any], Tensor]:
    """Figures, reader and logits of a GPTQ folder as another environment's transformers and gptqmodel read it."""
    command = [python, __file__, "--read", str(path), "--logits", str(folder / "logits.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise LimbeckError(f"{GPTQMODEL}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))  # gptqmodel prints its own
    return json.loads(line), torch.load(folder / "logits.pt", weights_only=True)


def read_gptq(path: Path, place: Path) -> None:
    """In the environment with gptqmodel: print the figures and the reader, store the logits."""
    forward = _torch(_transformers(path))
    torch.save(logits(forward), place)
    print(json.dumps({**figures(forward), "reader": versions(("transformers", GPTQMODEL))}))


def stored() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())["rows"] if FILE.exists() else []


def keep(row: dict[str, Any]) -> None:
    """Add a row to the file, in the order of the sources."""
    order = [source.name for source in SOURCES]
    rows = sorted([*stored(), row], key=lambda held: order.index(held["source"]))
    write_json(FILE, {"torch": torch.__version__, "rows": rows})
    print(json.dumps(row), flush=True)


def missing(source: Source, python: str | None) -> list[tuple[str, str]]:
    """Forms and first names of readers that the file does not hold."""
    wanted = [(form, names[0]) for form in source.forms for names in readers(form)]
    wanted += [("gptq", GPTQMODEL)] if "gptq" in source.forms and python else []
    there = [row for row in stored() if row["source"] == source.name]

    def held(form: str, name: str) -> bool:
        return any(row["form"] == form and ("refused" in row or name in row["reader"]) for row in there)

    return [(form, name) for form, name in wanted if not held(form, name)]


def run(source: Source, python: str | None, every: bool) -> None:
    if not (wanted := missing(source, python)):
        return
    task = SUBJECT.task()
    model = source.model(task)
    about = {"source": source.name, "bits": source.bits, "method": source.method}
    expected, own = logits(_torch(model)), [r for r in stored() if r["source"] == source.name and r["form"] == MEMORY]
    if not own:
        own = [{**about, "form": MEMORY, "reader": "limbeck", **figures(_torch(model))}]
        keep(own[0])
    for form in dict.fromkeys(form for form, _ in wanted):
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = written(model, task, form, Path(folder))
            except LimbeckError as error:
                keep({**about, "form": form, "reader": "", "refused": str(error)})
                continue
            base = {**about, "form": form, "bytes": int(disk_bytes(path).value)}
            if form.startswith("gguf"):
                base["types"] = block_types(path)
            for names, read in readers(form).items():
                if (form, names[0]) in wanted:
                    forward = read(model, path)
                    theirs = logits(forward)
                    same = torch.equal(theirs, expected) and not every
                    found = {split: own[0][split] for split in SPLITS} if same else figures(forward)
                    found |= {"reader": versions(names), "computed": not same}
                    keep({**base, **found, **compared(found, own[0], theirs, expected)})
            if (form, GPTQMODEL) in wanted and python:
                found, theirs = elsewhere(python, path, Path(folder))
                keep({**base, **found, "computed": True, **compared(found, own[0], theirs, expected)})


def compared(found: Mapping[str, Any], own: Mapping[str, Any], theirs: Tensor, expected: Tensor) -> dict[str, float]:
    """Relative changes of perplexity, and the largest difference of logits over the largest logit."""
    changes = {f"{split}_change": found[split] / own[split] - 1 for split in SPLITS}
    return changes | {"logits": float((theirs - expected).abs().max() / expected.abs().max())}


HEAD = """# Exported forms

Generated by `benchmarks/exported_forms.py --write` from docs/exported_forms.json.

{about}
Source: bits and method of `limbeck.quantize`, and what differs from its defaults; `ends float` leaves the head in float. MB: of the whole file or folder,
with the tokenizer where the form holds one.{absent}

{missing}

| source | form | read by | validation | test | change, validation | change, test | logits | MB |
|---|---|---|---|---|---|---|---|---|
"""
ABSENT = " GPTQ folders were read by Limbeck alone: gptqmodel was not there (`--python`)."
REFUSED = "\n\n## What was refused\n\n| source | form | the exporter's words |\n|---|---|---|\n"


def page() -> str:
    rows = stored()
    absent = "" if any(GPTQMODEL in row["reader"] for row in rows) else ABSENT
    left = [f"{source.name}: {form} ({name})" for source in SOURCES for form, name in missing(source, None)]
    rest = f"Not measured yet: {'; '.join(left)}." if left else "All rows are measured."
    head = HEAD.format(about=(__doc__ or "").split("\n\n")[2].strip(), absent=absent, missing=rest)
    refused = [f"| {row['source']} | {row['form']} | {row['refused']} |" for row in rows if "refused" in row]
    return head + "\n".join(_line(row) for row in rows if "refused" not in row) + REFUSED + "\n".join([*refused, ""])


def _line(row: Mapping[str, Any]) -> str:
    form = f"{row['form']} ({row['types']})" if "types" in row else row["form"]
    cells = [row["source"], form, row["reader"], *(f"{row[split]:.3f}" for split in SPLITS)]
    if row["form"] == MEMORY:
        cells += [""] * 4
    else:
        changes = [f"{100 * row[f'{split}_change']:+.3f} %" for split in SPLITS]
        cells += changes if row.get("computed", True) else ["same", "same"]
        cells += [f"{row['logits']:.1e}" if row["logits"] else "0", f"{row['bytes'] / 1e6:.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="sources in this order, such as 4:gptq,8:dynamic")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no source after that long")
    parser.add_argument("--python", help="the interpreter of an environment with gptqmodel and optimum")
    parser.add_argument(
        "--all", action="store_true", help="compute perplexities also where the logits are the same bit for bit"
    )
    parser.add_argument("--write", action="store_true", help="write the page only")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read is not None:
        return read_gptq(given.read, given.logits)
    names = given.only.split(",") if given.only else [f"{source.bits}:{source.method}" for source in SOURCES]
    end = time.monotonic() + given.seconds
    chosen = [source for name in dict.fromkeys(names) for source in SOURCES if f"{source.bits}:{source.method}" == name]
    for source in () if given.write else chosen:
        if time.monotonic() < end:
            run(source, given.python, given.all)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
