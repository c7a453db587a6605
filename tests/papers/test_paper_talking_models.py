import dataclasses
import math

import pytest

from limbeck.beds.text import TextBed
from limbeck.datasets.load import find_folder
from limbeck.experiments import Run
from limbeck.experiments.store import Store
from limbeck.papers.talking_models import distilled, paper, talked

TINY = TextBed("sst2", vocabulary=300, length=16, labelled=96, depth=2, width=16, heads=2, steps=1)


def test_method_and_its_limits_are_one_function():
    runs = {name: (arm.run, arm.settings) for name, arm in paper.arms.items()}
    assert runs["method"] == (talked, {}) and runs["one_way"] == (talked, {"reads": "input"})
    assert runs["baseline"] == (distilled, {}) and runs["control"] == (distilled, {"weight": 0.0})


@pytest.mark.skipif(find_folder("sst2") is None, reason="data set sst2 (make data)")
def test_arms_run_at_equal_costs(tmp_path):
    bed = dataclasses.replace(TINY, depth=4)
    for arm, settings in (
        (talked, {"weight": 0.1}),
        (talked, {"weight": 0.1, "reads": "input"}),
        (talked, {"weight": 0.1, "rounds": 2}),
        (distilled, {"weight": 0.1}),
        (distilled, {"weight": 0.0}),
        (distilled, {"weight": 0.1, "kind": "logits"}),
    ):
        run = Run(0, "validation", store=Store(tmp_path))
        found = arm(run, bed=bed, steps=2, **settings)
        assert all(map(math.isfinite, found.values())) and run.costs == {"steps": 2, "samples": 64}
