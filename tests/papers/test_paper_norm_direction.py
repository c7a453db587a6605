"""ND loss's paper file: its arms run, spend alike, and are what the paper says."""

import math
from dataclasses import replace

import pytest
from arms import run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.norm_direction import paper

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert all(math.isfinite(value) for found, _ in results.values() for value in found.values())
    for cost in ("steps", "samples", "parameters"):  # the projector is not kept
        assert len({run.costs[cost] for _, run in results.values()}) == 1


def test_the_geometry_is_measured_where_there_is_a_projector(results):
    for name in ("method", "cosine"):
        found, _ = results[name]
        assert found["norm"] > 0
        assert -1 <= found["cosine"] <= 1
    assert "norm" not in results["baseline"][0]


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
