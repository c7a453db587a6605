"""Budgets: units, limits against measurements, mistakes."""

import pytest

from limbeck.budget import Budget
from limbeck.errors import UsageError
from limbeck.measure.base import Measurement


def measurement(name, value, better="lower"):
    return Measurement(name, value, better=better)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("bytes", "100 kB", 100_000),
        ("bytes", "1.5MiB", 1.5 * 2**20),
        ("bytes", 12, 12),
        ("latency", "2 ms", 0.002),
        ("latency", "350us", 350e-6),
        ("memory", "1 GB", 1e9),
    ],
)
def test_units(field, text, value):
    assert getattr(Budget(**{field: text}), field) == pytest.approx(value)


@pytest.mark.parametrize(
    "fields",
    [{"bytes": "10 apples"}, {"latency": "-2 ms"}, {"latency": 0}, {"drop": "lots"}, {"drop": "120%"}, {"bytes": True}],
)
def test_nonsense_is_refused_by_field(fields):
    with pytest.raises(UsageError, match=r"budget\." + next(iter(fields))):
        Budget(**fields)


def test_unknown_limit_lists_near_ones():
    with pytest.raises(UsageError, match="latency"):
        Budget.from_mapping({"latancy": "2 ms"})


def test_limits_are_compared_with_measurements():
    budget = Budget(bytes=100, latency="1 ms")
    rows = budget.check({"bytes": measurement("bytes", 99), "latency": measurement("latency", 0.002)})
    assert [(row["limit"], row["met"]) for row in rows] == [("bytes", True), ("latency", False)]


def test_a_limit_that_was_not_measured_is_not_met():
    assert Budget(memory="1 GB").check({}) == [{"limit": "memory", "allowed": 1e9, "measured": None, "met": False}]


@pytest.mark.parametrize(
    ("drop", "before", "after", "better", "met"),
    [
        ("1%", 0.90, 0.892, "higher", True),  # allowed 0.009
        ("1%", 0.90, 0.890, "higher", False),
        (0.01, 0.90, 0.8901, "higher", True),
        ("10%", 20.0, 21.9, "lower", True),  # a perplexity that rose
        ("10%", 20.0, 22.1, "lower", False),
        ("0%", 0.9, 0.95, "higher", True),  # it got better
    ],
)
def test_drop_is_relative_with_a_percent_sign_and_absolute_without(drop, before, after, better, met):
    rows = Budget(drop=drop).check({}, measurement("m", before, better), measurement("m", after, better))
    assert [row["met"] for row in rows] == [met]
