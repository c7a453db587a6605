"""MaKD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.experiments import Run, Store
from limbeck.papers.makd import ASPECTS, answers, paper

BED = replace(DIGITS, train=60, teacher_training=replace(DIGITS.teacher_training, epochs=None, steps=2))


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=BED, steps=2)
    assert_alike(paper, results)  # the outputs for the questions are not among the parameters
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_questions_are_about_digits_and_no_two_the_same():
    assert len(set(ASPECTS.values())) == len(ASPECTS) == 20
    assert all(0 < len(digits) < 10 and set(digits) <= set(range(10)) for digits in ASPECTS.values())


@pytest.mark.parametrize("kind", ["dealt", "class", "rounded"])
def test_the_other_answers_keep_of_the_annotators_what_they_should(kind, tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    plain, other = (answers(run, chosen, BED) for chosen in ("image", kind))
    assert plain.shape == other.shape == (60, 20) and not torch.equal(plain, other)
    if kind == "dealt":
        assert torch.equal(plain.sort(0).values, other.sort(0).values)
    if kind == "class":
        torch.testing.assert_close(other.sigmoid().mean(0), plain.sigmoid().mean(0))
        of_class = torch.cat([batch["labels"] for batch in BED.task().batches("train", 64)])
        assert all(len(other[of_class == label].unique(dim=0)) == 1 for label in range(10))
    if kind == "rounded":
        assert torch.equal(other > 0, plain > 0)
        assert float((other.sigmoid() - other.sigmoid().round()).abs().max()) < 1e-6
