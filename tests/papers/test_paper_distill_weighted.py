"""DistillWeighted's paper file: its arms run, spend alike, and are what the paper says."""

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.transfer import SOURCES, TransferBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run, Store
from limbeck.papers.distill_weighted import objective, paper, similarities, weights

needs_data = pytest.mark.skipif(
    find_folder("mnist") is None or find_folder("cifar10") is None, reason="data sets mnist and cifar10 (make data)"
)
TINY = TransferBed(size=8, labelled=3, repeats=2, unlabelled=64, source_train=64, images=400, epochs=1)


@needs_data
def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=TINY, steps=2)
    assert_alike(paper, results, "steps", "samples")
    assert len({found["loss"] for found, _ in results.values()}) >= len(paper.arms) - 1
    assert "objects" in results["method"][1].notes[0] and results["control"][1].store.used == []


@needs_data
def test_the_target_has_some_labels_and_scores_belong_to_sources(tmp_path):
    labels = torch.cat([batch["labels"] for batch in TINY.task().batches("train", 64)])
    assert labels[labels >= 0].bincount().tolist() == [6] * 5 and int((labels == -100).sum()) == 64
    assert len(similarities(Run(0, "validation", Store(tmp_path)), TINY)) == len(SOURCES)


@needs_data
@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    low, high = TransferBed().expects["accuracy"]
    assert low <= TransferBed().reference(Run(0, "test", Store(tmp_path)))["accuracy"] <= high


def test_weights_and_terms():
    scores = [0.1, 0.3, -0.2]
    assert weights("weighted", scores) == pytest.approx((0.25, 0.75, 0.0))
    assert weights("nearest", scores) == (0.0, 1.0, 0.0) and weights("farthest", scores) == (0.0, 0.0, 1.0)
    assert weights("uniform", scores) == pytest.approx((1 / 3,) * 3)
    terms = objective((0.25, 0.75, 0.0), 0.2).terms
    assert [w for _, w in terms] == pytest.approx([0.2, 0.2, 0.6, 0.0])
    assert objective((0.25, 0.75, 0.0), 0.2).reads.teacher == {"0.logits", "1.logits"}
