"""DB-LLM's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.papers.db_llm import BED, paper
from limbeck.quantization import Quantize, QuantizedLinear
from limbeck.quantization.replacement import quantized


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    bed = replace(BED, length=16, blocks=4, batch_size=2)
    return run_arms(paper, tmp_path_factory.mktemp("store"), steps=2, before=2, bed=bed)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")
    assert 0.3 < results["method"][0]["sparsity"] < 0.95


def test_the_layer_is_two_sparse_binary_products():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 8, bias=False)
    specification = Quantize(grid="dual_binary", weights=32, activations=None, scale_type="float32").specification
    made: QuantizedLinear = quantized(layer, specification)
    x = torch.randn(5, 64)
    bits = specification.quantizer.grid.signs[made.codes.long()]  # (out, in, 2) of 0 and 1
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    groups = torch.einsum("ogjk,ngj->nogk", bits.unflatten(1, (2, 32)), x.unflatten(1, (2, 32)))
    expected = (groups * made.weight_scale).sum((2, 3))
    assert torch.allclose(made(x), expected, atol=1e-4)
