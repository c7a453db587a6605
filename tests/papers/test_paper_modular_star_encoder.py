"""ModularStarEncoder's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest
from arms import run_arms

from limbeck.beds.pairs import CODE_PAIRS, recall
from limbeck.datasets.load import find_folder
from limbeck.papers.modular_star_encoder import at_exits, paper

needs_data = pytest.mark.skipif(find_folder("code_java_cs") is None, reason="data set code_java_cs (make data)")
TINY = replace(CODE_PAIRS, vocabulary=400, length=8, train=64, width=8, heads=2, steps=2)


@needs_data
def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=TINY)
    assert all(run.costs == {"steps": 2, "samples": 64} for _, run in results.values())
    assert all(math.isfinite(v) and 0 <= v <= 1 for found, _ in results.values() for v in found.values())
    for row in paper.compared:
        assert row.metric in results[row.method][0] and row.metric in results[row.against][0]


def test_every_exit_weighs_as_its_depth():
    terms = at_exits((2, 4, 6)).terms
    assert [(term.signal, weight) for term, weight in terms] == [
        ("exits.0", pytest.approx(1 / 3)), ("exits.1", pytest.approx(2 / 3)), ("exits.2", 1.0),
    ]  # fmt: skip


def test_recall_counts_both_directions():
    import torch

    pairs = torch.eye(4)[:, None].repeat(1, 2, 1)
    assert recall(pairs) == 1.0
    pairs[0, 1], pairs[1, 1] = pairs[1, 1].clone(), pairs[0, 1].clone()
    assert recall(pairs) == 0.5
    assert recall(pairs, count=4) == 1.0


@needs_data
@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    from limbeck.experiments import Run, Store

    low, high = CODE_PAIRS.expects["recall@1"]
    assert low <= CODE_PAIRS.reference(Run(0, "test", Store(tmp_path)))["recall@1"] <= high
