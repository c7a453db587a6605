"""Dynamic int8 models in ONNX Runtime with one range per tensor and one per token: how fast, how close to torch, how good.

    python benchmarks/onnx_input_ranges.py [--subjects encoder,language] [--batches 1,16] [--rounds 9]

The models and measures are those of `quantization_table.py`, quantized by `limbeck.quantize(model, 8, method="dynamic", embeddings=None)`. One
thread. Speed: seconds of the float32 graph over those of each, the median of rounds in turn and half the range between quartiles, on the first validation
examples. Difference: root mean square of the outputs' difference from the quantized model in torch, over that of its outputs. Metric: on validation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from quantization_cells import SUBJECTS, Subject
from rich.console import Console
from rich.table import Table

import limbeck as lb
from limbeck.export import export_onnx
from limbeck.export.runtime import OnnxModel
from limbeck.signals import call, first_tensor

FORMS = {
    "float32": {},
    "int8, tensor": {"precision": "int8", "input_ranges": "tensor"},
    "int8, token": {"precision": "int8", "input_ranges": "token"},
}


def speeds(runners: dict[str, OnnxModel], batch: dict[str, torch.Tensor], rounds: int) -> dict[str, str]:
    """Speed relative to the first runner, and its spread."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds + 1):
        for name, run in runners.items():
            begun = time.perf_counter()
            run(batch)
            times[name].append(time.perf_counter() - begun)
    first = times["float32"][1:]
    made = {}
    for name, found in times.items():
        ratios = [a / b for a, b in zip(first, found[1:])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        made[name] = f"{middle:.2f} ± {(high - low) / 2:.2f}"
    return made


def measure(subject: Subject, batches: list[int], rounds: int, table: Table) -> None:
    task, model = subject.task(), subject.load().eval()
    quantized = lb.quantize(model, 8, method="dynamic", embeddings=None).model
    examples = {size: next(iter(task.batches("validation", size, limit=size))) for size in batches}
    largest = examples[max(batches)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        expected = first_tensor(call(quantized, largest))
        runners = {}
        for name, settings in FORMS.items():
            source = quantized if settings else model
            path = export_onnx(source, task, Path(folder) / f"{name}.onnx", **settings).path
            runners[name] = OnnxModel(path, 1)
        by_size = [speeds(runners, examples[size], rounds) for size in batches]
        for name, run in runners.items():
            difference = (run(largest) - expected).square().mean().sqrt() / expected.square().mean().sqrt()
            found = task.evaluate(run, "validation", batch_size=32, limit=subject.limits["validation"])
            metric = f"{found[subject.metric]:.4f}"
            table.add_row(subject.name, name, *(one[name] for one in by_size), f"{difference:.2g}", metric)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    sizes = [int(size) for size in given.batches.split(",")]
    columns = [f"speed, batch {size}" for size in sizes]
    table = Table("model", "form", *columns, "difference", "validation")
    for name in given.subjects.split(","):
        measure(SUBJECTS[name], sizes, given.rounds, table)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
