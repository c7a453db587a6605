"""MaKD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS, Network
from limbeck.experiments import Run, Store
from limbeck.papers import makd
from limbeck.papers.makd import ASPECTS, QUESTIONS, SUPERCLASSES, answers, paper

BED = replace(DIGITS, train=60)
# digits stand in for both data sets, a wider classifier for the superclasses


class Annotator:
    """Answers about twenty classes, without any training."""

    def trained_teacher(self, run):
        torch.manual_seed(0)
        return Network(8, 4).make(1, len(SUPERCLASSES)).eval()


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=BED, annotator=Annotator(), steps=2)
    assert_alike(paper, results)  # the outputs for the questions are not among the parameters
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_superclasses_share_the_hundred_classes_out():
    assert sorted(label for group in SUPERCLASSES for label in group) == list(range(100))
    assert len(QUESTIONS) == 34 and all(1 < len(entry) < 11 for entry in ASPECTS.values())


@pytest.mark.parametrize("kind", ["dealt", "class", "rounded"])
def test_the_other_answers_keep_of_the_annotators_what_they_should(kind, tmp_path):
    run = Run(0, "validation", Store(tmp_path))
    plain, other = (answers(run, chosen, BED, Annotator()) for chosen in ("image", kind))
    assert plain.shape == other.shape == (60, 34) and not torch.equal(plain, other)
    if kind == "dealt":
        assert torch.equal(plain.sort(0).values, other.sort(0).values)
    if kind == "class":
        torch.testing.assert_close(other.sigmoid().mean(0), plain.sigmoid().mean(0))
        task = BED.task()
        of_class = torch.cat([batch["labels"] for batch in task.batches("train", 64)])
        assert all(len(other[of_class == label].unique(dim=0)) == 1 for label in range(10))
    if kind == "rounded":
        assert torch.equal(other > 0, plain > 0)
        assert float((other.sigmoid() - other.sigmoid().round()).abs().max()) < 1e-6


def test_an_annotator_of_other_data_sees_what_the_student_sees():
    assert makd.ANNOTATOR.dataset != makd.BED.dataset
    assert (makd.ANNOTATOR.size, makd.ANNOTATOR.mean, makd.ANNOTATOR.std) == (
        makd.BED.size,
        makd.BED.mean,
        makd.BED.std,
    )
