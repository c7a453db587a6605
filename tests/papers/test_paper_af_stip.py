"""AF-STip's paper file: its arms run, spend alike, and only the control is shown the data."""

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.transfer import TransferBed
from limbeck.experiments import Run
from limbeck.papers.af_stip import SOURCE, collected, paper, pseudo_inputs

TINY = TransferBed(size=8, labelled=3, repeats=2, unlabelled=64, source_train=300, images=800, epochs=1)


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=TINY, tuning=2, epochs=1)
    assert_alike(paper, results, "steps", "samples")
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


@pytest.mark.parametrize("source", ["perturbed", "white", "means", "gaussians"])
def test_no_pseudo_input_is_an_image(source):
    images, labels = collected(TINY.source_task(SOURCE), "train")
    found = pseudo_inputs(Run(0, "validation"), images, labels, source, 1.0)
    assert found.shape == images.shape
    distance = (found - images).flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    assert float(distance.min()) > 0.3
    assert torch.equal(found, pseudo_inputs(Run(0, "validation"), images, labels, source, 1.0))
    assert not torch.equal(found, pseudo_inputs(Run(1, "validation"), images, labels, source, 1.0))
