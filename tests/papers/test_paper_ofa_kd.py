"""OFA-KD: the arms run, and the objective is the paper's sum."""

import math
from dataclasses import replace

import pytest

from limbeck.beds.images import DIGITS
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.objectives import AtExit, CrossEntropy, EnhancedTargets
from limbeck.papers import ofa_kd

TINY = replace(DIGITS, train=64, teacher_train=128, validation=50)


@pytest.fixture
def quick(monkeypatch):
    """A teacher that is not trained: the arms are what is tried here."""
    monkeypatch.setattr(
        type(TINY), "trained_teacher", lambda self, run, make=None, architecture=None, **changes: make().eval()
    )


@pytest.mark.parametrize("arm", [ofa_kd.ofa, ofa_kd.kd, ofa_kd.dkd, ofa_kd.hints, ofa_kd.labels])
def test_the_arms_run(tmp_path, quick, arm):
    one = Run(0, "validation", Store(tmp_path))
    found = arm(one, bed=TINY, steps=2)
    assert all(math.isfinite(value) for value in found.values()) and one.costs["steps"] == 2


def test_the_objective_has_the_label_once_and_the_teacher_at_the_head_and_at_each_stage():
    terms = [(term, weight) for term, weight in ofa_kd.objective(1.3).terms]
    assert all(weight == 1 for _, weight in terms)
    enhanced = EnhancedTargets(1.3, label=False)
    assert [term for term, _ in terms] == [
        CrossEntropy(), enhanced, AtExit("layer1", enhanced, 2), AtExit("layer2", enhanced, 1), AtExit("layer3", enhanced, 0)
    ]  # fmt: skip


def test_every_rival_has_as_many_settings():
    arms = ofa_kd.paper.arms
    assert {len(arms[name].candidates()) for name in ("method", "baseline", "decoupled", "hints")} == {3}
