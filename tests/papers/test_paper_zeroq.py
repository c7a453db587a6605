"""ZeroQ's paper file: its arms run, keep to the same bits, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.zeroq import WIDTHS, paper, random_bits

TINY = replace(DIGITS, training=replace(DIGITS.training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=5)


def test_every_quantized_arm_keeps_to_the_mean_of_bits(results):
    for name, (found, run) in results.items():
        if name == "float":
            continue
        assert found["bits"] <= 4.0 and (found["bits"] == 4.0 or name != "baseline")
        assert run.costs["allowed_bytes"] == results["baseline"][1].costs["allowed_bytes"]


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) >= 4


def test_random_bits_spend_what_they_may():
    numbers = {"a": 100, "b": 400, "c": 50}
    for seed in range(20):
        bits = random_bits(numbers, 4.0, torch.Generator().manual_seed(seed))
        spent = sum(numbers[path] * width for path, width in bits.items())
        assert set(bits.values()) <= set(WIDTHS) and spent <= 4 * 550
        up = [numbers[p] * (WIDTHS[WIDTHS.index(w) + 1] - w) for p, w in bits.items() if w < 8]
        assert all(spent + more > 4 * 550 for more in up)
