"""TRG's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.objectives import TokenContrast, TokenGraph, TokenRelations
from limbeck.papers.trg import objective, paper

TINY = replace(DIGITS, imbalance=10.0, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)  # the projector of the global loss is not kept
    assert {name for name, (_, run) in results.items() if not run.store.used} == {"control"}


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_terms_are_those_of_the_paper():
    def tokens(**parts):
        found = [term for term, _ in objective(1.0, 0.5, 7.0, **parts).terms]
        return [term for term in found if isinstance(term, (TokenRelations, TokenGraph, TokenContrast))]

    inner, graph, contrast = tokens()
    assert (inner.loss, graph.direction, contrast.epochs) == ("maps", "reverse", 7.0)
    assert tokens(inner=False) == [graph, contrast]
    assert tokens(graph=False) == [inner]
