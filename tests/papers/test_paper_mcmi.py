"""MCMI's paper file: its arms run, spend alike, and the class that is left out is not seen."""

from dataclasses import replace

import pytest
import torch
from arms import run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.mcmi import paper, without

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3, epochs=1)


def test_every_arm_runs_and_spends_alike(results):
    for row in paper.compared:
        assert all(0 <= results[side][0][row.metric] <= 1 for side in (row.method, row.against))
    for cost in ("steps", "samples", "parameters"):
        assert len({run.costs[cost] for _, run in results.values()}) == 1, cost


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_only_whole_batches_lose_a_class():
    batch = {"pixel_values": torch.randn(4, 1, 2, 2), "labels": torch.tensor([3, 1, 3, 0]), "epoch": 2}
    left = without(3)(batch)
    assert left["labels"].tolist() == [1, 0]
    assert torch.equal(left["pixel_values"], batch["pixel_values"][[1, 3]])
    assert left["epoch"] == 2
