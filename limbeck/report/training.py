"""Training curves: loss with its parts, the metric and the learning rate of every training run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.report.charts import both, tick_words
from limbeck.report.report import Report
from limbeck.report.svg import Frame, Scale, axes, element, text
from limbeck.report.words import PERCENT, quantity, significant, title

MOST_POINTS = 140  # of one curve; more steps are drawn as the mean of neighbours, with their range behind it


def training(report: Report) -> str:
    """Loss with its parts, the metric and the learning rate of every training run."""
    made = []
    for entry in report.training:
        history = entry["history"]
        steps = [row for row in history.get("steps", []) if isinstance(row.get("loss"), (int, float))]
        names = list(dict.fromkeys(name for row in steps for name in row.get("parts") or {}))
        names = [name for name in names if not name.startswith("balance(")]  # factors, no losses
        lines = [_curve("loss", steps, "loss")]
        if len(names) > 1:
            for name in names:
                rows = [row for row in steps if name in (row.get("parts") or {})]
                lines.append(Curve(name, [row["step"] for row in rows], [row["parts"][name] for row in rows]))
        rates = [row for row in steps if isinstance(row.get("learning_rate"), (int, float))]
        charts = [
            ("Loss", curves(lines, "loss", "Loss")),
            _metric_curves(report, history.get("evaluations", [])),
            (
                "Learning rate",
                curves([_curve("learning_rate", rates, "learning rate")], "learning_rate", "Learning rate"),
            ),
        ]
        figures = [element("figure", element("figcaption", text(words)), chart) for words, chart in charts if chart]
        if figures:
            made.append(
                element("h3", text(entry["step"])) + _run_words(history) + element("div", *figures, class_="triple")
            )
    return "".join(made)


def _curve(key: str, rows: list[dict[str, Any]], name: str) -> Curve:
    return Curve(name, [row["step"] for row in rows], [row[key] for row in rows])


def _metric_curves(report: Report, evaluations: list[dict[str, Any]]) -> tuple[str, str]:
    rows = [row for row in evaluations if isinstance(row.get(report.metric), (int, float))]
    splits = list(dict.fromkeys(str(row.get("split", "validation")) for row in rows))
    lines = []
    for split in splits:
        own = [row for row in rows if str(row.get("split", "validation")) == split]
        lines.append(Curve(split, [row["step"] for row in own], [row[report.metric] for row in own], dots=True))
    words = title(report.metric) + (f", {splits[0]}" if len(splits) == 1 else "")
    return words, curves(lines, report.metric, words)


def _run_words(history: dict[str, Any]) -> str:
    facts = []
    steps = history.get("steps", [])
    if steps:
        facts.append(f"{steps[-1]['step']:,} steps")
    if isinstance(history.get("samples"), (int, float)):
        facts.append(f"{history['samples']:,.0f} samples")
    if isinstance(history.get("seconds"), (int, float)):
        facts.append(quantity(history["seconds"], "seconds", "seconds"))
    return element("p", text(" · ".join(facts)), class_="facts") if facts else ""


@dataclass(frozen=True)
class Curve:
    """One line of a chart over training steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    dots: bool = False


def curves(lines: Sequence[Curve], name: str, what: str) -> str:
    """Lines over the training step, with a readout of all of them at the step under the pointer."""
    lines = [line for line in lines if line.values]
    if not lines:
        return ""
    thinned = [thin(line.steps, line.values) for line in lines]
    every = [value for line in thinned for row in line for value in row[2:]]
    wide_range = name == "loss" and min(every) > 0 and max(every) / min(every) >= 50
    last = max(line.steps[-1] for line in lines)
    words = tick_words(name, "")

    def draw(frame: Frame) -> str:
        x = Scale(0.0, float(max(last, 1)), *frame.across)
        y = Scale.fit(every, *frame.up, margin=0.06, log=wide_range)
        parts = [axes(frame, x, y, _step_words, words, "Training step", "", 70)]
        for number, (line, rows) in enumerate(zip(lines, thinned)):
            kind = f"s{min(number, 4)}"
            if any(high > low for *_, low, high in rows):
                edge = [(x(s), y(high)) for s, _, _, high in rows] + [(x(s), y(low)) for s, _, low, _ in rows[::-1]]
                parts.append(element("path", class_=f"band {kind}", d=_path(edge) + "Z"))
            parts.append(element("path", class_=f"curve {kind}", d=_path([(x(s), y(v)) for s, v, _, _ in rows])))
            if line.dots or len(rows) == 1:
                dots = (element("circle", class_=f"dot {kind}", cx=x(s), cy=y(v), r=2.6) for s, v, _, _ in rows)
                parts.extend(dots)
        bottom, top = frame.up
        parts.append(element("line", class_="cursor", x1=0, x2=0, y1=bottom, y2=top))
        readout = element("g", data_readout=json.dumps(_readout(lines, thinned, x, name)))
        return "".join([*parts, readout])

    label = f"{what} over training steps; arrow keys move the readout"
    return both(draw, label, Frame(360, 230, left=50, top=12), Frame(340, 220, left=50, top=12), tabindex=0) + _legend(
        lines
    )


def thin(steps: Sequence[float], values: Sequence[float]) -> list[tuple[float, float, float, float]]:
    """(step, mean, least, largest) of at most MOST_POINTS groups of neighbours; the last point of all is kept as it is."""
    pairs = list(zip(steps, values))
    size = -(-len(pairs) // MOST_POINTS)
    rows = []
    for start in range(0, len(pairs), size):
        group = pairs[start : start + size]
        numbers = [value for _, value in group]
        rows.append((group[-1][0], sum(numbers) / len(numbers), min(numbers), max(numbers)))
    return rows


def _readout(lines, thinned, x: Scale, name: str) -> list[list[Any]]:
    """[pixel, words] per step at which any line has a point."""
    at: dict[float, list[str]] = {}
    for line, rows in zip(lines, thinned):
        for step, value, _, _ in rows:
            number = f"{100 * value:.2f} %" if name in PERCENT else significant(value, 4)
            at.setdefault(step, []).append(f"{line.name}: {number}")
    return [[round(x(step), 1), "\n".join([f"step {step:,.0f}", *at[step]])] for step in sorted(at)]


def _legend(lines: Sequence[Curve]) -> str:
    if len(lines) < 2:
        return ""
    items = []
    for number, line in enumerate(lines):
        swatch = element("path", class_=f"curve s{min(number, 4)}", d="M1 5H25")
        key = element("svg", swatch, viewBox="0 0 26 10", width=26, height=10, aria_hidden="true")
        items.append(element("li", key, text(line.name)))
    return element("ul", *items, class_="legend")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _step_words(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
