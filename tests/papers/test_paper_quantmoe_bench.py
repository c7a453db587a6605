"""QuantMoE-Bench's paper file: the arms run, keep to the mean of bits and differ."""

from dataclasses import replace

import pytest
from arms import run_arms

from limbeck.papers.quantmoe_bench import BED, paper

TINY = replace(BED, length=16, depth=2, width=16, heads=2, hidden=16, experts=4, steps=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY)


def test_every_arm_keeps_to_the_mean(results):
    for name, (found, _) in results.items():
        assert (found["bits"] == 32.0) if name == "float" else (2.5 < found["bits"] <= 3.0)


def test_the_arms_differ(results):
    assert len({found["perplexity"] for found, _ in results.values()}) >= 5
