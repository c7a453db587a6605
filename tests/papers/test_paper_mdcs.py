"""MDCS's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.mdcs import PRIORS, consistent, diverse, paper

TINY = replace(DIGITS, imbalance=10.0)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, epochs=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert all(run.store.used == [] for _, run in results.values())


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_each_expert_has_its_prior_and_learns_from_itself():
    counts = (9, 3)
    for terms, weight in ((diverse(PRIORS, counts).terms, 1.0), (consistent(PRIORS, counts, 0.6, 2).terms, 0.6)):
        assert [w for _, w in terms] == [weight] * 3
        own = [getattr(term, "objective", term) if weight == 0.6 else term for term, _ in terms]
        assert [(o.student, o.objective.strength) for o in own] == [
            ("heads.0", -0.5),
            ("heads.1", 1.0),
            ("heads.2", 2.5),
        ]
        if weight == 0.6:
            assert all(o.teacher == o.student for o in own)
            assert all(term.ramp == 2 for term, _ in terms)
