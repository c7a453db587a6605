"""Summaries over seeds."""

import pytest

from limbeck.summary import paired_interval, summarize


def test_interval_of_paired_differences_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653
    found = paired_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["mean"] == pytest.approx(2.0)
    assert found["high"] - found["mean"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert found["mean"] - found["low"] == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_few_or_unpaired(a, b):
    with pytest.raises(ValueError, match="equal length"):
        paired_interval(a, b)


def report(seed, alone, distilled):
    def stage(name, value):
        return {"name": name, "form": "f", "measurements": {"accuracy": {"value": value, "unit": ""}}}

    task = {"metric": "accuracy", "better": "higher", "name": "t", "dataset": "d"}
    stages = [stage("teacher", 0.9), stage("baseline", alone), stage("distill", distilled)]
    return {"name": "n", "seed": seed, "task": task, "environment": {}, "stages": stages}


def test_the_baseline_is_compared_with_the_first_step_seed_by_seed():
    found = summarize([report(0, 0.80, 0.81), report(1, 0.70, 0.72), report(2, 0.75, 0.78)])
    assert found["seeds"] == [0, 1, 2]
    assert found["stages"][2]["measurements"]["accuracy"]["values"] == [0.81, 0.72, 0.78]
    assert found["paired"]["mean"] == pytest.approx(0.02)
    assert found["paired"]["of"] == "distill" and found["paired"]["low"] < 0.02 < found["paired"]["high"]
