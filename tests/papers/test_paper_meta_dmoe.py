"""Meta-DMoE's paper file: its arms run, spend alike, and are what the paper says."""

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.domains import TURNED_DIGITS, TurnedDigits
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers.meta_dmoe import paper

needs_data = pytest.mark.skipif(find_folder("mnist") is None, reason="data set mnist (make data)")
TINY = TurnedDigits(train=200, width=4, support=4, groups=2, steps=2, expert_steps=2)


@needs_data
def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=TINY)
    assert_alike(paper, results)
    assert all(run.costs["steps"] == 4 for _, run in results.values())
    assert {name for name, (_, run) in results.items() if not run.store.used} == {"baseline"}


@needs_data
def test_images_to_adapt_to_depend_on_the_seed_and_lie_as_in_the_unseen_domain(tmp_path):
    groups, others = (TINY.supports(Run(seed, "validation", Store(tmp_path))) for seed in (0, 1))
    assert [tuple(group.shape) for group in groups] == [(4, 1, 14, 14)] * 2
    assert not torch.equal(groups[0], others[0])
    assert TINY.unseen not in TINY.angles


@needs_data
@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    found = TURNED_DIGITS.reference(Run(0, "test", Store(tmp_path)))
    for metric, (low, high) in TURNED_DIGITS.expects.items():
        assert low <= found[metric] <= high, (metric, found)
