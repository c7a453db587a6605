"""The intervals against scipy's paired t-test, their coverage, and the error of planned looks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from limbeck.errors import UsageError
from limbeck.experiments.statistics import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    look_level,
    overall,
    paired_difference,
    spearman,
    verdict,
)


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_is_that_of_the_paired_t_test(n, better):
    draw = np.random.default_rng(n)
    a, b = draw.normal(size=n), draw.normal(size=n)
    found = paired_difference(a.tolist(), b.tolist(), better=better)
    known = stats.ttest_rel(*((a, b) if better == "higher" else (b, a))).confidence_interval(0.95)
    assert found.low == pytest.approx(known.low) and found.high == pytest.approx(known.high)


def test_pairing_removes_what_the_seeds_share():
    seeds = np.array([0.0, 10.0, 20.0])
    found = paired_difference((seeds + np.array([1.0, 1.1, 0.9])).tolist(), seeds.tolist())
    assert verdict(found) == HOLDS  # unpaired, the spread of the seeds would hide it


def test_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        d = draw.normal(0.3, 1.0, size=4)
        found = paired_difference(d.tolist(), [0.0] * 4)
        hits += found.low <= 0.3 <= found.high
    assert 0.935 < hits / 2000 < 0.965


def test_planned_looks_keep_the_error():
    """Three looks without an effect call a winner or a loser in at most 5 % of runs; the plain interval would not."""
    draw = np.random.default_rng(1)
    looks, level = (3, 6, 10), look_level(3)
    wrong = naive = 0
    for _ in range(3000):
        d = draw.normal(size=10).tolist()
        wrong += any(verdict(paired_difference(d[:n], [0.0] * n, level=level)) != INCONCLUSIVE for n in looks)
        naive += any(verdict(paired_difference(d[:n], [0.0] * n)) != INCONCLUSIVE for n in looks)
    assert wrong / 3000 <= 0.055 < naive / 3000


def test_margin_turns_better_into_as_good_as():
    found = paired_difference([0.99, 0.985, 0.99], [1.0, 1.0, 0.995])
    assert verdict(found, margin=0.05) == HOLDS
    assert verdict(found, margin=0.0) == INCONCLUSIVE
    assert verdict(found, margin=-0.5) == FAILS  # "better by at least a half" is refuted


def test_verdict_of_no_difference_is_open():
    assert verdict(paired_difference([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])) == INCONCLUSIVE


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([HOLDS, INCONCLUSIVE], INCONCLUSIVE),
        ([HOLDS, FAILS], FAILS),
        ([INCONCLUSIVE, FAILS], FAILS),
    ],
)
def test_all_decisive_comparisons_must_hold(rows, found):
    assert overall(rows) == found


def test_refusals():
    with pytest.raises(UsageError, match="one of each per seed"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(UsageError, match="at least 2"):
        paired_difference([1.0], [1.0])
    with pytest.raises(UsageError, match="not finite"):
        paired_difference([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(UsageError, match="higher"):
        paired_difference([1.0, 2.0], [1.0, 2.0], better="more")
    with pytest.raises(UsageError, match="decisive"):
        overall([])


def test_spearman_ranks_with_ties():
    a, b = [1, 2, 2, 3], [10, 20, 30, 40]
    ranks = np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]
    assert spearman(a, b) == pytest.approx(ranks)
    assert spearman([1, 1], [1, 2]) == 0.0
