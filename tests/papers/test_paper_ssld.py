"""SSLD's paper file: its arms run, spend alike, and learn from the images that the paper says."""

from dataclasses import replace

import pytest
import torch
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.experiments import Run, Store
from limbeck.papers.ssld import chosen, images, paper, pool

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1), validation=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def results(folder):
    return run_arms(paper, folder, bed=TINY, steps=3, last=1, count=4, size=100, strangers=None)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_chosen_images_are_none_that_are_known(folder):
    run, found = Run(0, "validation", Store(folder)), pool(TINY, 100, None)
    selected, random = (chosen(run, TINY, found, how, 4) for how in ("selected", "random"))
    assert len(selected) == len(random) <= 40
    known = torch.cat([images(TINY.task()), images(TINY.task(), "validation")]).flatten(1)
    for positions in (selected, random):
        assert float(torch.cdist(images(found)[positions].flatten(1), known).min()) > 0.5
