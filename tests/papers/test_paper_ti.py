"""The paper file of teacher intervention: its arms run, spend alike, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms, tiny_patches

from limbeck.beds.patches import UNIT_PATCHES
from limbeck.beds.text import TextBed
from limbeck.datasets.load import find_folder
from limbeck.papers.ti import objective, paper, phases

TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=2)


@pytest.mark.skipif(find_folder("sst2") is None, reason="data set sst2 (make data)")
def test_every_arm_runs_and_spends_alike(tmp_path):
    images = replace(tiny_patches(UNIT_PATCHES), teacher=(2, 16), supervised_steps=2)
    results = run_arms(paper, tmp_path, steps=4, text=TINY, images=images)
    assert_alike(paper, results, "steps", "samples")


def test_phases_are_the_papers():
    gradual = phases("gradual", 0.6)
    assert [phase.until for phase in gradual] == pytest.approx([0.1, 0.2, 0.6])
    assert [phase.signals[0].partition("attention.")[2] for phase in gradual] == ["output", "output:input", "weights"]
    (only,) = phases("maps", 0.6)
    assert only.until == 0.6 and only.signals == gradual[2].signals


def test_the_loss_names_every_layer_and_no_label():
    terms = objective(2, 4).terms
    assert all(weight == 1.0 for _, weight in terms)
    read = {name for term, _ in terms for name in term.reads.student}
    for i in range(2):
        for name in ("", ".norm2:input", ".attention.query", ".attention.key"):
            assert f"blocks.{i}{name}" in read
    assert not any(type(term).__name__ == "CrossEntropy" for term, _ in terms)
