"""Lightweight Clinical Transformers' paper file: its arms run, spend alike, and learn from the texts and teachers they name."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers.lightweight_clinical_transformers import DOMAIN, GENERAL, ROMANCE, objective, paper, special

pytestmark = pytest.mark.skipif(find_folder("udhr") is None, reason="the data set is not on this machine")
SMALL = {"depth": 2, "width": 16, "heads": 2, "pretraining": 1, "labelled": 64}
TINY = {"general": replace(GENERAL, **SMALL), "domain": replace(DOMAIN, **SMALL)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), **TINY, steps=4)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_two_kinds_of_text_share_a_vocabulary_and_no_language():
    general, domain = GENERAL.task(), DOMAIN.task()
    assert general.vocabulary_size == domain.vocabulary_size and domain.classes == tuple(sorted(ROMANCE))
    assert not set(general.classes) & set(domain.classes) and len(general.classes) == 24


def test_the_special_teacher_is_the_general_one_gone_on(tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    before, after = TINY["general"].pretrained_masked(run), special(run, **TINY)
    moved = [(a - b).abs().max().item() for a, b in zip(after.parameters(), before.parameters())]
    assert 0 < max(moved) < 0.05 and not run.costs


def test_the_objective_is_the_papers():
    weights = {term.name: weight for term, weight in objective("distil", 1, 2, 4).terms}
    assert weights == {"SoftTargets": 5, "CrossEntropy": 2, "Hint(encoder.norm)": 1.0}
    assert objective("distil", 1, 2, 4).terms[0][0].temperature == 2.0
    assert objective("tiny", 1, 2, 4).reads.teacher == {
        "logits", "encoder.blocks.1", "encoder.blocks.1.attention.query", "encoder.blocks.1.attention.key",
    }  # fmt: skip
