"""TAID's paper file: its arms run, spend alike, and the linear control is the method without a rate."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.language import CHARACTERS
from limbeck.objectives import InterpolatedTargets, SoftTargets
from limbeck.papers.taid import objective, paper

TINY = replace(CHARACTERS, length=16, blocks=4, batch_size=4, teacher_steps=2)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=4, before=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results, "steps", "samples")
    assert {run.costs["steps"] for _, run in results.values()} == {4}  # the steps before are shared


def test_only_the_text_alone_has_no_teacher(results):
    assert {name for name, (_, run) in results.items() if len(run.store.used) == 1} == {"labels"}


def test_the_losses_differ(results):
    """In so few steps the line is steeper than any rate, so the method is its control."""
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms) - 1
    assert results["method"][0] == results["control"][0]


def test_the_control_is_the_line():
    assert objective(temperature=1.0, **paper.control.settings) == InterpolatedTargets(rate=0.0)
    assert objective("kl", 2.0, 0.0) == SoftTargets(temperature=2.0)
