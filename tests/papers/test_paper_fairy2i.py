"""Fairy2i's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.papers.fairy2i import BED, paper
from limbeck.quantization.fourth_roots import widely_linear
from limbeck.quantization.specification import PerTensor, Specification


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    bed = replace(BED, length=16, blocks=4, batch_size=2)
    return run_arms(paper, tmp_path_factory.mktemp("store"), steps=2, before=2, bed=bed)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_bits_are_what_is_stored(results):
    """Linear layers of one block at width 64: 12 x 64^2 weights; norms, biases and scales beside them."""
    size = {name: found["block_bytes"] for name, (found, _) in results.items()}
    weights = 12 * 64 * 64
    assert size["float"] - size["method"] == pytest.approx(weights * (4 - 2 / 8), rel=0.01)
    assert size["method"] - size["one_stage"] == pytest.approx(weights / 8, rel=0.05)
    assert abs(size["method"] - size["baseline"]) < 200 and abs(size["one_stage"] - size["binary"]) < 200
    assert size["one_stage"] < size["ternary"] < size["method"]


def test_stages_put_complex_entries_on_roots():
    from limbeck.quantization import FourthRootGrid

    specification = Specification(1, granularity=PerTensor(), method="mean", grid=FourthRootGrid(1))
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    parts = widely_linear(specification.quantizer.decode(specification.encode(weight)))
    assert ((parts.abs() > 1e-6).sum(-1) == 1).all()  # every entry lies on one axis
