"""Numbers as words, scales and labels: the small pure pieces the page is made of."""

import itertools
import math
import random

import pytest

from limbeck.measure import Measurement
from limbeck.report.charts import tick_words
from limbeck.report.svg import Scale, element, overlap, place_labels, shorten
from limbeck.report.training import MOST_POINTS, thin
from limbeck.report.words import change, exact, quantity, significant, spread

QUANTITIES = [
    (0.98213, "accuracy", "", "98.21 %"),
    (81_234, "bytes", "bytes", "81.2 kB"),
    (999_999, "bytes", "bytes", "1.00 MB"),
    (512, "bytes", "bytes", "512 B"),
    (0, "bytes", "bytes", "0 B"),
    (0.00134, "latency", "seconds", "1.34 ms"),
    (0.9999e-3, "latency", "seconds", "1.00 ms"),
    (83e-6, "latency", "seconds", "83.0 µs"),
    (744, "seconds", "seconds", "12.4 min"),
    (272_474, "parameters", "parameters", "272 k"),
    (8.17e7, "flops", "FLOPs", "81.7 M"),
    (7368.4, "throughput", "items/s", "7,370/s"),
    (0.41234, "ndcg@10", "", "0.4123"),
    (23.456, "perplexity", "", "23.46"),
]


@pytest.mark.parametrize(("value", "name", "unit", "expected"), QUANTITIES)
def test_quantities(value, name, unit, expected):
    assert quantity(value, name, unit) == expected


def test_exact_values():
    assert exact(81_234, "bytes", "bytes") == "81,234 bytes"
    assert exact(0.98213, "accuracy", "") == "98.21 %"


def test_significant_digits():
    assert [significant(v) for v in (0, 1234, 12.34, 0.01234, 99.96, -2.5)] == [
        "0",
        "1,230",
        "12.3",
        "0.0123",
        "100",
        "−2.50",
    ]


def made(name, value, unit, better="lower", **others):
    return Measurement(name, value, unit, better, **others)


CHANGES = [
    ("bytes", 1000, 100, "bytes", "lower", "10.0× smaller"),
    ("bytes", 100, 250, "bytes", "lower", "2.50× larger"),
    ("bytes", 100, 100, "bytes", "lower", "same"),
    ("latency", 0.004, 0.001, "seconds", "lower", "4.00× faster"),
    ("latency", 0.001, 0.004, "seconds", "lower", "4.00× slower"),
    ("parameters", 100, 25, "parameters", "lower", "4.00× less"),
    ("throughput", 100, 300, "items/s", "higher", "3.00×"),
    ("accuracy", 0.98, 0.9739, "", "higher", "−0.61 points"),
    ("accuracy", 0.98, 0.985, "", "higher", "+0.50 points"),
    ("accuracy", 0.98, 0.98, "", "higher", "±0.00 points"),
    ("ndcg@10", 0.41, 0.4, "", "higher", "−0.0100"),
    ("bytes", 0, 5, "bytes", "lower", ""),
]


@pytest.mark.parametrize(("name", "first", "now", "unit", "better", "expected"), CHANGES)
def test_changes(name, first, now, unit, better, expected):
    assert change(made(name, first, unit, better), made(name, now, unit, better)) == expected


def test_spreads():
    found = made("latency", 0.0013, "seconds", runs=30, low=0.00121, high=0.0014)
    assert spread(found) == "1.21–1.40 ms, 30 runs"
    assert spread(made("latency", 0.001, "seconds", runs=9, low=0.0009, high=0.0011)) == "900 µs–1.10 ms, 9 runs"
    assert spread(made("bytes", 5, "bytes", runs=1, low=5, high=5)) == ""


@pytest.mark.parametrize("seed", range(40))
def test_ticks_are_round_inside_and_apart(seed):
    generator = random.Random(seed)
    low = 10 ** generator.uniform(-6, 6)
    scale = Scale.fit([low, low * 10 ** generator.uniform(0.001, 7)], 50, generator.choice([300, 540]))
    ticks = scale.ticks(60)
    assert len(ticks) >= 1 and len(set(ticks)) == len(ticks)
    pixels = [scale(tick) for tick in ticks]
    assert all(50 <= p <= 540 for p in pixels)
    if len(ticks) > 2:
        assert all(b - a >= 59.9 for a, b in itertools.pairwise(pixels))
    if scale.log:
        assert all(f"{tick:.6e}".split("e")[0].rstrip("0").rstrip(".") in "123456789" for tick in ticks)


def test_a_wide_range_is_logarithmic_and_a_narrow_one_is_not():
    assert Scale.fit([1e3, 1e6], 0, 100).log and not Scale.fit([1e3, 2e3], 0, 100).log
    assert not Scale.fit([0, 1e6], 0, 100).log
    scale = Scale(1, 100, 0, 200, log=True)
    assert scale(10) == pytest.approx(100) and Scale(0, 4, 10, 50)(1) == pytest.approx(20)


def test_one_value_alone_has_a_scale():
    for value in (0.0, 5.0, 1e-9):
        scale = Scale.fit([value], 0, 100)
        assert 0 < scale(value) < 100 and math.isfinite(scale(value))


def test_tick_words():
    assert tick_words("bytes", "bytes")(2e5) == "200 kB"
    assert tick_words("latency", "seconds")(5e-4) == "500 µs"
    assert tick_words("accuracy", "")(0.915) == "91.5 %"


@pytest.mark.parametrize("seed", range(20))
def test_labels_overlap_neither_each_other_nor_a_point(seed):
    generator = random.Random(seed)
    points = [(generator.uniform(70, 470), generator.uniform(60, 280)) for _ in range(8)]
    points[1] = points[0]
    names = ["stage " + "x" * generator.randint(1, 14) for _ in points]
    bounds = (56, 18, 538, 306)
    labels = place_labels(points, names, bounds)
    assert sum(label is not None for label in labels) >= 7
    boxes = [label.box for label in labels if label]
    assert all(overlap(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    marks = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    assert all(overlap(box, mark) == 0 for box in boxes for mark in marks)
    assert all(b[0] >= 56 and b[1] >= 18 and b[2] <= 538 and b[3] <= 306 for b in boxes)


def test_thinning_keeps_means_ranges_and_the_last_step():
    steps = list(range(1, 1001))
    values = [math.sin(step) for step in steps]
    rows = thin(steps, values)
    assert len(rows) <= MOST_POINTS and rows[-1][0] == 1000
    assert min(row[2] for row in rows) == min(values) and max(row[3] for row in rows) == max(values)
    size = 8
    assert rows[0][1] == pytest.approx(sum(values[:size]) / size)
    assert thin([5], [2.0]) == [(5, 2.0, 2.0, 2.0)]


def test_elements_escape_their_attributes():
    assert element("a", "x", href='"><script>', data_x="1", hidden=True, title=None) == (
        '<a href="&quot;&gt;&lt;script&gt;" data-x="1" hidden>x</a>'
    )
    assert shorten("a long name", 7) == "a long…" and shorten("short", 7) == "short"
