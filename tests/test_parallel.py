"""Processes side by side: results come with their keys, and a failure is raised after what was finished."""

import math
import os

import pytest

from limbeck.parallel import processes


def test_results_come_with_their_keys_and_threads_are_shared(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with processes(2, threads=1) as run:
        assert dict(run(math.sqrt, {"a": (4.0,), "b": (9.0,)})) == {"a": 2.0, "b": 3.0}
        assert dict(run(os.getenv, {1: ("OMP_NUM_THREADS",)})) == {1: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_failure_is_raised_after_the_others():
    done = {}
    with pytest.raises(ValueError, match=r"math|nonnegative|expected"), processes(1) as run:
        for key, value in run(math.sqrt, {"good": (4.0,), "bad": (-1.0,)}):
            done[key] = value
    assert done == {"good": 2.0}
