"""Time of one linear layer at batch 1 on every grid and kernel, against float32, in turn.

    python benchmarks/grid_kernels.py [--size 4096] [--repeats 30]

Every variant is the same weight matrix and bfloat16 input (float32 for the float layer); the runs go round, so that a busy machine slows all alike.
Printed: kernel, stored megabytes, median and least milliseconds, and the least time relative to float32 and to the int4 layer: on a machine
that does other things too, the median says how busy it was.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

from limbeck.plan import apply
from limbeck.quantization import Quantize

WEIGHT_ONLY = {"activations": None, "compute": "bfloat16"}
VARIANTS = {
    "int4 group 32": {"bits": 4, "weights": 32, **WEIGHT_ONLY},
    "int4 group 128": {"bits": 4, "weights": 128, **WEIGHT_ONLY},
    "int3 group 32": {"bits": 3, "weights": 32, **WEIGHT_ONLY},
    "int2 group 32": {"bits": 2, "weights": 32, **WEIGHT_ONLY},
    "int2 group 128": {"bits": 2, "weights": 128, **WEIGHT_ONLY},
    "ternary tensor": {"grid": "ternary", "weights": "tensor", **WEIGHT_ONLY},
    "ternary group 32": {"grid": "ternary", "weights": 32, **WEIGHT_ONLY},
    "binary channel": {"grid": "binary", **WEIGHT_ONLY},
    "e8 2 bits channel": {"grid": "e8", "bits": 2, "method": "minmax", **WEIGHT_ONLY},
    "ternary, int8 inputs": {"grid": "ternary", "weights": "tensor", "activations": "dynamic"},
    "int8, int8 inputs": {"activations": "dynamic"},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    layer = nn.Linear(arguments.size, arguments.size, bias=False)
    models = {"float32": nn.Sequential(layer)}
    for name, settings in VARIANTS.items():
        model = nn.Sequential(nn.Linear(arguments.size, arguments.size, bias=False))
        model[0].weight = layer.weight
        models[name] = apply(model, Quantize(**settings).plan(model))
    x = torch.randn(1, arguments.size)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(arguments.repeats + 2):
            for name, model in models.items():
                given = x if name == "float32" else x.to(torch.bfloat16)
                model(given)  # the caches hold what this layer reads, as they would for its neighbour of the same size
                start = time.perf_counter()
                model(given)
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values[2:]) for name, values in times.items()}
    least = {name: min(values[2:]) for name, values in times.items()}
    print(f"{'variant':24}{'kernel':16}{'MB':>8}{'median ms':>11}{'least ms':>10}{'x float32':>11}{'x int4':>9}")
    for name, model in models.items():
        kernel = getattr(model[0], "kernel", "float32")
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6
        speed, relative = least["float32"] / least[name], least["int4 group 32"] / least[name]
        print(
            f"{name:24}{kernel:16}{size:8.2f}{1e3 * median[name]:11.3f}{1e3 * least[name]:10.3f}{speed:11.2f}{relative:9.2f}"
        )


if __name__ == "__main__":
    main()
