"""ProC-KD's paper file: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.datasets.load import data_folder, find_folder
from limbeck.papers.proc_kd import BED, paper

pytestmark = pytest.mark.skipif(
    find_folder("mnist") is None, reason=f"data set 'mnist' is not in {data_folder()} (set LIMBECK_DATA, or: make data)"
)
TINY = replace(BED, name="tiny", size=8, labelled=4, source_train=64, images=200, source_width=4, epochs=1)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_arms(paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=2)


def test_every_arm_runs_and_spends_alike(results):
    assert_alike(paper, results)  # the same student with the same prototypes everywhere


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)


def test_the_teacher_knows_other_classes_and_all_its_images_are_labelled():
    labels = TINY.task()._rows["train"].take(list(range(TINY.task().size("train"))))["labels"]
    assert labels.bincount().tolist() == 5 * [4 * BED.repeats]
    assert TINY.source_task("digits").classes == tuple("01234")
