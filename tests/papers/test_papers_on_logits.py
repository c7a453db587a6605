"""The paper files of PLD and SinKD: their arms run, spend alike, and are what the papers say."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers import pld, sinkd

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module", params=[pld.paper, sinkd.paper], ids=["pld", "sinkd"])
def paper(request):
    return request.param


@pytest.fixture(scope="module")
def results(paper, tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3)


def test_every_arm_runs_and_spends_alike(paper, results):
    assert_alike(paper, results)


def test_all_but_the_control_have_a_teacher(results):
    taught = {name for name, (_, run) in results.items() if run.store.used}
    assert taught == set(results) - {"control"}


def test_the_arms_differ(paper, results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
