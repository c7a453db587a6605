"""Every grid with every granularity it allows, for the laws of grids."""

from __future__ import annotations

import pytest
import torch

from limbeck.quantization.grids import IntegerGrid, PerChannel, PerGroup, PerRows, PerTensor, Quantizer
from limbeck.quantization.named_grids import named

GRIDS = {
    "int8": IntegerGrid(8),
    "int4": IntegerGrid(4),
    "uint3": IntegerGrid(3, False, False),
    "affine": named("affine", 3),
    "fixed_point": named("fixed_point", 6),
    "fixed_point_wide": named("fixed_point", 12),
    "power_of_two": named("power_of_two", 4),
    "log_sqrt2": named("log_sqrt2", 4),
    "log_unsigned": named({"name": "log", "bits": 4, "signed": False}),
    "power": named("power", 4),
    "searched_power": named("searched_power", 3),
    "nf4": named("nf4"),
    "nf3": named("nf3"),
    "fp8_e4m3": named("fp8_e4m3"),
    "fp8_e5m2": named("fp8_e5m2"),
    "fp6_e3m2": named("fp6_e3m2"),
    "fp6_e2m3": named("fp6_e2m3"),
    "fp4": named("fp4"),
    "ternary": named("ternary"),
    "binary": named("binary"),
    "levels": named({"name": "levels", "levels": [-1, -0.25, 0, 0.5, 2]}),
    "range_levels": named("range_levels", 3),
    "binaries": named("binaries", 2),
    "binaries3": named("binaries", 3),
    "dual_binary": named("dual_binary"),
    "kmeans": named("kmeans", 3),
    "kmeans_vectors": named({"name": "kmeans", "index_bits": 4, "entries": 4}),
    "e8": named("e8", 2),
    "e8_3": named("e8", 3),
    "pyramid": named("pyramid"),
    "pyramid_beta": named({"name": "pyramid", "gains": "beta"}),
    "pyramid_wide": named({"name": "pyramid", "entries": 16, "pulses": 12, "gain_bits": 5}),
    "two_of_four": named("two_of_four", 4),
    "two_of_four_8": named("two_of_four", 8),
    "fourth_roots": named("fourth_roots", 1),
    "fourth_roots2": named("fourth_roots", 2),
}
GRANULARITIES = {"tensor": PerTensor(), "channel": PerChannel(0), "group": PerGroup(16), "rows": PerRows(3)}
CASES = [
    (grid, granularity)
    for grid in GRIDS
    for granularity in GRANULARITIES
    if granularity == "tensor" or not grid.startswith(("fourth_roots", "pyramid_wide"))
    if granularity != "rows" or grid != "pyramid_beta"
]
each = pytest.mark.parametrize(("grid", "granularity"), CASES, ids=[f"{a}-{b}" for a, b in CASES])
every = pytest.mark.parametrize("grid", GRIDS)


def quantizer(grid, granularity="tensor", method=None, scale_type="float32"):
    made = GRIDS[grid]
    return Quantizer(made, GRANULARITIES[granularity], method or made.methods[0], scale_type)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.1
