"""MC-MoE's paper file: the arms run, keep to 2 bits, and leave out as many experts."""

from dataclasses import replace

import pytest
from arms import run_arms

from limbeck.papers.mc_moe import BED, paper

TINY = replace(BED, length=16, depth=2, width=16, heads=2, hidden=16, experts=4, steps=2)
THINNED = ("fewer", "unprotected", "random")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY)


def test_every_arm_keeps_to_two_bits(results):
    for name, (_, run) in results.items():
        assert name == "float" or 1.0 < run.costs["expert_bits"] <= 2.0


def test_as_many_experts_are_left_out(results):
    saved = {name: found["saved"] for name, (found, _) in results.items() if name in THINNED}
    assert set(saved) == set(THINNED)
    for share in saved.values():
        assert 0.05 < share < 0.13 and share == pytest.approx(saved["fewer"], abs=0.02)


def test_the_arms_differ(results):
    assert len({found["perplexity"] for found, _ in results.values()}) >= 7
