import math

import pytest

from limbeck.beds.text import TextBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run
from limbeck.experiments.store import Store
from limbeck.objectives import CrossEntropy, SoftTargets
from limbeck.papers.distiller import distilled, objective, paper

TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=1)


def test_the_arms_differ_in_the_objective_for_hidden_states_only():
    logits = (CrossEntropy() + SoftTargets(temperature=2.0)).terms
    for name, alpha in (("mi", 0.5), ("infonce", 1.0), ("mse", None), ("cosine", None)):
        found = objective(name, 0.3, "blocks.1", "blocks.3")
        assert found.terms[:2] == logits and found.terms[2][1] == pytest.approx(0.3)
        assert found.reads.student == {"logits", "blocks.1"} and found.reads.teacher == {"logits", "blocks.3"}
        assert getattr(found.terms[2][0], "alpha", None) == alpha
    assert objective("none", 0.0, "a", "b").terms == logits
    assert set(paper.arms) == {"method", "baseline", "control", "cosine", "infonce"}


@pytest.mark.skipif(find_folder("sst2") is None, reason="data set sst2 (make data)")
def test_arms_run_at_equal_costs(tmp_path):
    for kind in ("mi", "infonce", "mse", "cosine", "none"):
        run = Run(0, "validation", store=Store(tmp_path))
        found = distilled(run, kind, 0.1, TINY, steps=2)
        assert all(map(math.isfinite, found.values())) and run.costs == {"steps": 2, "samples": 64}
