"""Latency with a clock that the test holds, so that nothing depends on the machine's speed."""

import pytest
import torch
from measure_tiny import TinyTask, tiny_model

from limbeck.errors import UsageError
from limbeck.measure import latency, latency_torch, measure_latency, throughput_torch
from limbeck.measure.base import Measurement
from limbeck.measure.latency import as_throughput, interleaved, time_runs


class Clock:
    """Time that passes only when a run says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def run(self, *seconds):
        durations = iter(seconds)

        def run():
            self.now += next(durations)

        return run


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def test_median_and_quartiles_without_the_warmup(clock):
    run = clock.run(50, 50, 1, 2, 3, 4, 5)
    found = measure_latency(run, runs=5, warmup=2, budget_seconds=1000)
    assert (found.value, found.low, found.high, found.runs) == (3, 2, 4, 5)
    assert found.settings["warmup"] == 2 and found.unit == "seconds" and found.better == "lower"


def test_the_time_budget_ends_it_but_not_before_three_runs(clock):
    assert len(time_runs(clock.run(*[10] * 50), runs=50, warmup=1, budget_seconds=55)) == 5
    assert len(time_runs(clock.run(*[10] * 50), runs=50, warmup=5, budget_seconds=1)) == 3


def test_interleaved_alternates_and_pairs(clock):
    order = []

    def a():
        order.append("a")
        clock.now += 4.0 * len(order)  # the machine slows down all the time

    def b():
        order.append("b")
        clock.now += 2.0 * len(order)

    found = interleaved(a, b, runs=4, warmup=1, budget_seconds=1e9)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert found.a.runs == found.b.runs == found.ratio.runs == 4
    expected = [(4 * 3) / (2 * 4), (4 * 6) / (2 * 5), (4 * 7) / (2 * 8), (4 * 10) / (2 * 9)]
    assert found.ratio.value == pytest.approx(sum(sorted(expected)[1:3]) / 2)
    assert found.ratio.low <= found.ratio.value <= found.ratio.high


def test_throughput_is_items_over_time():
    found = as_throughput(Measurement("latency", 0.5, "seconds", low=0.4, high=0.8, runs=9), 32)
    assert (found.value, found.low, found.high) == (64, 40, 80)
    assert found.better == "higher" and found.unit == "items/s" and found.name == "throughput"


def test_threads_are_set_stated_and_put_back():
    model, task, before = tiny_model(), TinyTask(), torch.get_num_threads()
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    found = latency_torch(model, task, threads=before + 1, runs=3, warmup=1, budget_seconds=1)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before
    assert found.settings["threads"] == before + 1 and f"{before + 1} threads" in found.where


def test_the_batch_that_runs_is_the_batch_that_is_stated():
    model, sizes = tiny_model(), []
    model.register_forward_hook(
        lambda _, args, __: sizes.append((len(args[0]), model.training, torch.is_grad_enabled()))
    )
    found = throughput_torch(model, TinyTask(), 16, runs=3, warmup=0, budget_seconds=1)
    assert set(sizes) == {(16, False, False)} and found.settings["batch_size"] == 16


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warmup": -1}, {"budget_seconds": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        measure_latency(lambda: None, **wrong)


def test_no_threads_are_refused():
    with pytest.raises(UsageError, match="thread"):
        latency_torch(tiny_model(), TinyTask(), threads=0)
