"""SKD's paper file: its arms run, spend alike, and are what the paper says."""

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.radio import MODULATED, RadioBed
from limbeck.experiments import Run, Store
from limbeck.papers.signal_kd import _limit, paper

TINY = RadioBed(train=120, held=10, test=10, steps=3, teacher_steps=3)


def test_every_arm_runs_and_spends_alike(tmp_path):
    results = run_arms(paper, tmp_path, bed=TINY)
    assert_alike(paper, results)
    assert len({found["loss"] for found, _ in results.values()}) == len(paper.arms)
    assert {name for name, (_, run) in results.items() if run.store.used} == {"method", "few"}


def test_few_is_a_tenth():
    assert _limit(TINY, True) == {"limit": 72} and _limit(TINY, False) == {}


@pytest.mark.slow
def test_the_reference_reaches_what_the_bed_expects(tmp_path):
    found = MODULATED.reference(Run(0, "test", Store(tmp_path)))
    for metric, (low, high) in MODULATED.expects.items():
        assert low <= found[metric] <= high, (metric, found)
