"""The paper file of BitNet b1.58 with the median: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms
from torch import nn

from limbeck.beds.images import DIGITS
from limbeck.papers.bitnet_b1_58_median import TEXT, paper, perceptron, trained
from limbeck.quantization import QuantizedLinear


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    text = replace(TEXT, length=16, blocks=4, batch_size=2)
    return run_arms(paper, tmp_path_factory.mktemp("store"), steps=2, epochs=1, text=text, images=DIGITS)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")


def test_float_is_measured_at_half_the_width(results):
    for name, (found, _) in results.items():
        assert found["loss"] == found["narrow_loss" if name == "baseline" else "wide_loss"]
    assert results["method"][0]["wide_bytes"] < 0.5 * results["baseline"][0]["wide_bytes"]


def test_layers_end_ternary_with_the_median_as_scale_and_normalized_inputs():
    torch.manual_seed(0)
    model = perceptron(9, width=8)
    seen = []
    made = trained(lambda m: seen.append(m) or m, model, "absmedian", False)
    layers = [module for module in made.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 3 and all(layer.bits == 1.6 and layer.kernel.startswith("int8") for layer in layers)
    assert sum(isinstance(module, nn.LayerNorm) for module in made.modules()) == 3
    torch.manual_seed(0)
    weight = perceptron(9, width=8)[1].weight
    median = weight.abs().median()
    assert torch.allclose(layers[0].weight, (weight / median).round().clamp(-1, 1) * median)
