"""The page's charts, each a pure function from report numbers to SVG. Every chart is drawn for desk and for phone width."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from limbeck.report.report import Report, Stage, pareto
from limbeck.report.svg import Box, Frame, Scale, axes, element, place_labels, shorten, text
from limbeck.report.words import DECIMAL, PERCENT, TIME, change, shown, spread, title


def both(draw: Callable[[Frame], str], label: str, wide: Frame, narrow: Frame, **attributes: object) -> str:
    """One chart at both widths; the style sheet shows the one that fits."""
    made = []
    for kind, frame in (("wide", wide), ("narrow", narrow)):
        box = f"0 0 {frame.width} {frame.height}"
        made.append(
            element(
                "svg", draw(frame), class_=f"chart {kind}", viewBox=box, role="group", aria_label=label, **attributes
            )
        )
    return "".join(made)


def tick_words(name: str, unit: str) -> Callable[[float], str]:
    """How an axis writes its values: round, in the unit's own steps."""

    def words(value: float) -> str:
        if name in PERCENT:
            return f"{100 * value:.10g} %"
        steps = TIME if unit == "seconds" else DECIMAL
        if unit in ("bytes", "seconds", "items/s", "parameters", "FLOPs") and value:
            size, prefix = next(((s, p) for s, p in steps if abs(value) >= s * 0.9999), steps[-1])
            return f"{value / size:.4g} {prefix}{'B' if unit == 'bytes' else ''}".rstrip()
        return f"{value:.6g}"

    return words


def point_tip(report: Report, stage: Stage, names: Sequence[str]) -> str:
    """What a point says: the stage, how it was run, and each value with its change and spread."""
    lines = [stage.name, stage.form]
    for name in names:
        measurement, first = stage.measurements[name], report.stages[0].measurements.get(name)
        line = f"{title(name)}: {shown(measurement)}"
        if first is not None and stage is not report.stages[0] and change(first, measurement):
            line += f" ({change(first, measurement)})"
        lines.append(line)
        if spread(measurement):
            lines.append(f"   {spread(measurement)}")
    return "\n".join(lines)


def tradeoff(report: Report, cost: str) -> str:
    """The main metric against a cost: a labelled point per stage, quartiles of repeated runs, the Pareto front."""
    metric = report.metric
    stages = [stage for stage in report.stages if {metric, cost} <= set(stage.measurements)]
    if not stages:
        return ""
    costs = [stage.measurements[cost] for stage in stages]
    values = [stage.measurements[metric] for stage in stages]
    front = pareto([(c.value, v.value) for c, v in zip(costs, values)], report.task["better"])
    bounds = [bound for c in costs for bound in (c.value, c.low, c.high) if bound is not None]

    def draw(frame: Frame) -> str:
        x = Scale.fit(bounds, *frame.across, margin=0.1, log=None)
        y = Scale.fit([v.value for v in values], *frame.up, margin=0.16, log=False)
        at = [(x(c.value), y(v.value)) for c, v in zip(costs, values)]
        named = tick_words(cost, costs[0].unit), tick_words(metric, "")
        parts = [axes(frame, x, y, *named, title(cost), title(metric)), _staircase([at[i] for i in front])]
        for c, (_, py) in zip(costs, at):
            if c.low is not None and c.high is not None and c.high > c.low:
                parts.append(element("line", class_="spread", x1=x(c.low), x2=x(c.high), y1=py, y2=py))
        names = [shorten(stage.name, 26 if frame.width > 400 else 18) for stage in stages]
        area = (frame.left + 2, frame.top + 4, frame.width - 2, frame.height - frame.bottom - 2)
        labels = place_labels(at, names, area, _strokes([at[i] for i in front]))
        for (px, py), label in zip(at, labels):
            if label is None:
                continue
            if label.led:
                end = (label.box[1] + label.box[3]) / 2
                parts.append(element("line", class_="lead", x1=px, y1=py, x2=label.x, y2=end))
            parts.append(
                element("text", text(label.words), class_="label", x=label.x, y=label.y, text_anchor=label.anchor)
            )
        for index, (stage, (px, py)) in enumerate(zip(stages, at)):
            tip = point_tip(report, stage, (metric, cost))
            kind = "point front" if index in front else "point"
            kind += " final" if stage is report.final else ""
            parts.append(
                element(
                    "g",
                    element("circle", class_="reach", cx=px, cy=py, r=14),
                    _marker(stage.runtime, px, py),
                    class_=kind,
                    tabindex=0,
                    role="img",
                    aria_label=tip.replace("\n", ", "),
                    data_tip=tip,
                    data_stage=stage.name,
                )
            )
        return "".join(parts)

    label = f"{title(metric)} against {title(cost).lower()}, one point per stage"
    return both(draw, label, Frame(540, 350), Frame(340, 320, left=52))


def _marker(runtime: str, x: float, y: float) -> str:
    if runtime.startswith("onnx"):
        return element("rect", class_="mark", x=x - 4.6, y=y - 4.6, width=9.2, height=9.2, rx=1.5)
    return element("circle", class_="mark", cx=x, cy=y, r=5.2)


def _strokes(points: Sequence[tuple[float, float]]) -> list[Box]:
    """The strokes of the staircase as thin boxes."""
    made = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        made += [(x0, y0 - 1, x1, y0 + 1), (x1 - 1, min(y0, y1), x1 + 1, max(y0, y1))]
    return made


def _staircase(points: Sequence[tuple[float, float]]) -> str:
    """The front as what can be had: the quality of a point holds until the next, dearer point."""
    if len(points) < 2:
        return ""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for x, y in points[1:]:
        path += f"H{x:.1f}V{y:.1f}"
    return element("path", class_="pareto", d=path)


def reliability_diagram(stage: Stage) -> str:
    """Accuracy per bin of confidence, with the gap to the diagonal of perfect calibration."""
    rows = [row for row in stage.reliability["bins"] if row["count"]]
    most = max((row["count"] for row in rows), default=1)

    def draw(frame: Frame) -> str:
        x, y = Scale(0.0, 1.0, *frame.across), Scale(0.0, 1.0, *frame.up)
        percent = tick_words("accuracy", "")
        parts = [axes(frame, x, y, percent, percent, "Confidence", "Accuracy")]
        for row in rows:
            left, right = x(row["low"]) + 1, x(row["high"]) - 1
            top, sure = y(row["accuracy"]), y(row["confidence"])
            tip = (
                f"confidence {100 * row['low']:.3g} to {100 * row['high']:.3g} %\n"
                f"mean confidence {100 * row['confidence']:.1f} %\naccuracy {100 * row['accuracy']:.1f} %\n"
                f"{row['count']:,} examples"
            )
            bar = element("rect", class_="bar", x=left, y=top, width=right - left, height=max(y(0) - top, 0.0))
            upper, lower = min(top, sure), max(top, sure)
            gap = element("rect", class_="gap", x=left, y=upper, width=right - left, height=lower - upper)
            share = max(34 * (row["count"] / most), 1.5)
            count = element("rect", class_="count", x=left, y=y(0) - share, width=right - left, height=share)
            parts.append(
                element(
                    "g",
                    bar,
                    gap,
                    count,
                    class_="bin",
                    data_tip=tip,
                    tabindex=0,
                    role="img",
                    aria_label=tip.replace("\n", ", "),
                )
            )
        parts.append(element("line", class_="diagonal", x1=x(0), y1=y(0), x2=x(1), y2=y(1)))
        return "".join(parts)

    return both(draw, f"Reliability diagram of {stage.name}", Frame(480, 340, right=24), Frame(340, 300, right=24))
