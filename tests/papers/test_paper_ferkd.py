"""FerKD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS
from limbeck.papers.ferkd import paper

TINY = replace(DIGITS, region=(0.3, 1.0), teacher_training=replace(DIGITS.teacher_training, epochs=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=12)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_answers_are_stored_for_every_epoch(results):
    written = {name: run.costs.get("bytes", 0) for name, (_, run) in results.items()}
    assert written["method"] == written["baseline"] > 0 == written["control"]
    assert results["control"][1].store.used == []


def test_regions_are_part_of_the_bed():
    assert "region 0.3 to 1.0" in TINY.task().augmentation
    assert TINY.digest() != DIGITS.digest() and "region" not in DIGITS.settings()
