"""The sections of the page: each a function from the report to HTML, empty where there is nothing to show."""

from __future__ import annotations

from typing import Any

import yaml

from limbeck.measure.base import Measurement
from limbeck.report.charts import Curve, curves, reliability_diagram, tradeoff
from limbeck.report.layers import layers
from limbeck.report.report import Report, Stage
from limbeck.report.svg import element, text
from limbeck.report.words import PERCENT, change, exact, quantity, shown, spread, title

__all__ = [
    "budget", "environment", "exports", "headline", "layers", "measured", "recipe", "reliability", "stages", "tradeoffs", "training",
]  # fmt: skip


RUNTIME_BOUND = ("latency", "throughput", "peak_memory")  # measurements that compare within one runtime only


def comparable(report: Report, name: str) -> Stage | None:
    """The stage that a final speed or memory is fairly compared with: the first that ran in the same runtime, else the first.

    Sizes and quality compare across runtimes, so for them it is always the first stage.
    """
    having = [stage for stage in report.stages if name in stage.measurements and stage is not report.final]
    if name in RUNTIME_BOUND:
        same = [stage for stage in having if stage.runtime == report.final.runtime]
        return (same or having or [None])[0]
    return report.stages[0] if report.stages[0] in having else None


def headline(report: Report) -> str:
    """The name, what was achieved in one sentence, and a card per main number."""
    final = report.final
    names = [
        n
        for n in (report.metric, "bytes", "latency", "throughput", "peak_memory", "parameters")
        if n in final.measurements
    ]
    facts = [report.task["name"].replace("_", " "), report.task["dataset"], f"seed {report.seed}", report.created[:10]]
    parts = [
        element("p", " · ".join(element("span", text(fact)) for fact in facts if fact), class_="facts"),
        element("h1", text(report.name)),
        element("p", text(achievement(report)), class_="achieved"),
    ]
    if report.budget:
        met = sum(entry["met"] for entry in report.budget)
        words = (
            "Budget met" if met == len(report.budget) else f"Budget not met: {met} of {len(report.budget)} limits kept"
        )
        parts.append(
            element(
                "p",
                element("a", text(words), href="#budget"),
                class_="chip " + ("met" if met == len(report.budget) else "missed"),
            )
        )
    cards = [_card(report, final.measurements[name]) for name in names[:4]]
    return element("header", *parts, element("div", *cards, class_="cards"))


def achievement(report: Report) -> str:
    """`int8: 11.2× smaller and 4.3× faster than teacher, at 97.60 % accuracy (−0.61 points).`"""
    final, gains = report.final, []
    for name in ("bytes", "latency"):
        before = comparable(report, name)
        if name in final.measurements and before is not None:
            words = change(before.measurements[name], final.measurements[name])
            if words and words != "same":
                gains.append((words, before.name))
    if len({before for _, before in gains}) == 1:
        gained = f"{' and '.join(words for words, _ in gains)} than {gains[0][1]}"
    else:
        gained = ", ".join(f"{words} than {before}" for words, before in gains)
    quality = ""
    if report.metric in final.measurements:
        now, first = final.measurements[report.metric], report.stages[0].measurements.get(report.metric)
        words = title(report.metric)
        quality = f"{shown(now)} {words.lower() if words.istitle() else words}"
        quality += f" ({change(first, now)})" if first is not None and final is not report.stages[0] else ""
    return f"{final.name}: {', at '.join(filter(None, (gained, quality)))}."


def _card(report: Report, now: Measurement) -> str:
    before = comparable(report, now.name)
    parts = [element("h3", text(title(now.name))), element("p", text(shown(now)), class_="value")]
    if before is not None:
        first = before.measurements[now.name]
        improved = now.value < first.value if now.better == "lower" else now.value > first.value
        parts.append(element("p", text(change(first, now)), class_="change better" if improved else "change"))
        from_words = f"from {shown(first)}, {before.name}"
        if before.runtime != report.final.runtime and now.name in RUNTIME_BOUND:
            from_words += f" in {before.runtime}"
        parts.append(element("p", text(from_words), class_="from"))
    return element("div", *parts, class_="card")


def stages(report: Report) -> str:
    """The before/after table: every stage, every measurement, the change against the first stage and the spread."""
    names = report.measured()
    head = [_sortable("Stage", "none", False)] + [_sortable(title(name), "none", True) for name in names]
    best = {name: _best(report, name) for name in names}
    rows = []
    for number, stage in enumerate(report.stages):
        notes = "".join(element("p", text(note), class_="note") for note in stage.notes)
        cells = [
            element(
                "th",
                element("span", text(stage.name), class_="name"),
                element("span", text(stage.form), class_="form"),
                notes,
                scope="row",
                data_sort=number,
            )
        ]
        cells += [_cell(report, stage, name, stage is best[name]) for name in names]
        rows.append(element("tr", *cells, data_stage=stage.name, class_="final" if stage is report.final else None))
    table = element(
        "table", element("thead", element("tr", *head)), element("tbody", *rows), class_="stages", data_sortable=True
    )
    words = "Small print: the change against the first stage, then the quartiles of repeated runs. Best values are bold. † against another runtime, so not the model's doing alone."
    return _scroll(table, "Stages and their measurements") + element("p", text(words), class_="hint")


def _best(report: Report, name: str) -> Stage | None:
    having = [stage for stage in report.stages if name in stage.measurements]
    if len({stage.value(name) for stage in having}) < 2:
        return None
    pick = max if having[0].measurements[name].better == "higher" else min
    return pick(having, key=lambda stage: stage.value(name))


def _cell(report: Report, stage: Stage, name: str, best: bool) -> str:
    if name not in stage.measurements:
        return element("td", element("span", "–", class_="absent", aria_label="not measured"), data_sort="")
    measurement, first = stage.measurements[name], report.stages[0].measurements.get(name)
    parts = [element("span", text(shown(measurement)), class_="number best" if best else "number")]
    if first is not None and stage is not report.stages[0]:
        foreign = name in RUNTIME_BOUND and stage.runtime != report.stages[0].runtime
        words = change(first, measurement) + (" †" if foreign else "")
        parts.append(element("span", text(words), class_="small"))
    if spread(measurement):
        parts.append(element("span", text(spread(measurement)), class_="small"))
    return element(
        "td",
        *parts,
        data_sort=repr(float(measurement.value)),
        data_name=name,
        title=exact(measurement.value, name, measurement.unit),
    )


def _sortable(words: str, state: str, number: bool) -> str:
    return element(
        "th",
        element("button", text(words), type="button"),
        scope="col",
        aria_sort=state,
        class_="number" if number else None,
    )


def _scroll(content: str, label: str) -> str:
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def tradeoffs(report: Report) -> str:
    """Quality against size and against latency."""
    made = [(cost, tradeoff(report, cost)) for cost in ("bytes", "latency")]
    figures = [
        element("figure", element("figcaption", text(f"{title(report.metric)} against {title(cost).lower()}")), chart)
        for cost, chart in made
        if chart
    ]
    if not figures:
        return ""

    def key(markup: str, words: str) -> str:
        return element(
            "li", element("svg", markup, viewBox="0 0 26 14", width=26, height=14, aria_hidden="true"), text(words)
        )

    keys = [
        key('<g class="point"><circle class="mark" cx="13" cy="7" r="5"/></g>', "torch"),
        key(
            '<g class="point"><rect class="mark" x="8.4" y="2.4" width="9.2" height="9.2" rx="1.5"/></g>',
            "ONNX Runtime",
        ),
        key('<g class="point front"><circle class="mark" cx="13" cy="7" r="5"/></g>', "on the Pareto front"),
        key('<path class="pareto" d="M1 11H13V3H25"/>', "Pareto front"),
        key('<line class="spread" x1="1" x2="25" y1="7" y2="7"/>', "quartiles of repeated runs"),
    ]
    return element("div", *figures, class_="pair") + element("ul", *keys, class_="legend")


def training(report: Report) -> str:
    """Loss with its parts, the metric and the learning rate of every training run."""
    made = []
    for entry in report.training:
        history = entry["history"]
        steps = [row for row in history.get("steps", []) if isinstance(row.get("loss"), (int, float))]
        names = list(dict.fromkeys(name for row in steps for name in row.get("parts") or {}))
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


def reliability(report: Report) -> str:
    """Reliability diagrams of the first and the last stage that have one."""
    having = [
        stage for stage in report.stages if stage.reliability and any(row["count"] for row in stage.reliability["bins"])
    ]
    if not having:
        return ""
    shown_stages = (
        having[:1] if len(having) == 1 else [having[0], report.final if report.final in having[1:] else having[-1]]
    )
    figures = []
    for stage in shown_stages:
        caption = f"{stage.name}: calibration error {100 * stage.reliability['error']:.2f} %"
        figures.append(element("figure", element("figcaption", text(caption)), reliability_diagram(stage)))
    words = "Bars: accuracy of the predictions in each bin of confidence. Outlined: the gap to their mean confidence. Along the floor: how many predictions the bin holds. On the dashed line confidence equals accuracy."
    return element("div", *figures, class_="pair") + element("p", text(words), class_="hint")


def budget(report: Report) -> str:
    """Each limit, what was measured, and whether it was kept."""
    rows = []
    for entry in report.budget:
        known = _known(report, entry["limit"])
        allowed, found = (
            "not measured" if value is None else quantity(value, *known)
            for value in (entry["allowed"], entry["measured"])
        )
        state = element(
            "span", "met" if entry["met"] else "not met", class_="state " + ("met" if entry["met"] else "missed")
        )
        share = 0 if not entry["measured"] or not entry["allowed"] else entry["measured"] / entry["allowed"]
        meter = element(
            "span",
            element("span", class_="fill", style=f"width:{min(max(share, 0), 1) * 100:.1f}%"),
            class_="meter " + ("" if entry["met"] else "missed"),
        )
        cells = (text(title(entry["limit"])), text(allowed), text(found) + meter, state, text(entry["stage"]))
        rows.append(element("tr", element("th", cells[0], scope="row"), *(element("td", cell) for cell in cells[1:])))
    return _table(("Limit", "Allowed", "Measured", "", "Stage"), rows, "Budget") if rows else ""


def _known(report: Report, limit: str) -> tuple[str, str]:
    """(name, unit) by which a limit's numbers are written; a drop given in percent is written in percent."""
    name = {"memory": "peak_memory"}.get(limit, limit)
    for stage in report.stages:
        if name in stage.measurements:
            return name, stage.measurements[name].unit
    asked = report.recipe.get("budget")
    in_percent = isinstance(asked, dict) and str(asked.get("drop", "")).strip().endswith("%")
    return ("accuracy" if in_percent or report.metric in PERCENT else limit, "")


def exports(report: Report) -> str:
    """Every exported file with its size and its largest difference from torch."""
    rows = []
    for entry in report.exports:
        difference = "–" if entry["difference"] is None else f"{entry['difference']:.2g}"
        cells = (
            element("code", text(entry["file"])),
            text(quantity(entry["bytes"], "bytes", "bytes")),
            text(difference),
        )
        rows.append(
            element("tr", element("th", text(entry["name"]), scope="row"), *(element("td", cell) for cell in cells))
        )
    return _table(("Export", "File", "Size", "Largest difference from torch"), rows, "Exports") if rows else ""


def recipe(report: Report) -> str:
    """The recipe as YAML."""
    if not report.recipe:
        return ""
    words = yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True, width=88)
    copy = element("button", "Copy", type="button", class_="copy", data_copy="recipe-text")
    return element(
        "div", copy, element("pre", element("code", text(words), id="recipe-text"), tabindex=0), class_="code"
    )


def environment(report: Report) -> str:
    """The machine and the versions."""
    rows = []
    for name, value in report.environment.items():
        shown_value = (
            quantity(value, "bytes", "bytes") if name == "memory" and isinstance(value, (int, float)) else value
        )
        rows.append(element("div", element("dt", text(name.replace("_", " "))), element("dd", text(shown_value))))
    return element("dl", *rows, class_="facts-list") if rows else ""


def measured(report: Report) -> str:
    """Where each number comes from: exact value, quartiles, runs, place and settings."""
    rows = []
    for stage in report.stages:
        for name in report.measured():
            if name not in stage.measurements:
                continue
            found = stage.measurements[name]
            settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.settings.items())
            ends = "" if found.low is None or found.runs < 2 else f"{found.low:.6g} to {found.high:.6g}"
            cells = (title(name), exact(found.value, name, found.unit), ends, found.runs, found.where, settings)
            rows.append(
                element("tr", element("th", text(stage.name), scope="row"), *(element("td", text(c)) for c in cells))
            )
    table = _table(
        ("Stage", "Measurement", "Value", "Quartiles", "Runs", "Where", "Settings"), rows, "Every measurement"
    )
    return element("details", element("summary", "Every number with its runs, place and settings"), table)


def _table(head: tuple[str, ...], rows: list[str], label: str) -> str:
    titles = element("tr", *(element("th", text(words), scope="col") for words in head))
    return _scroll(element("table", element("thead", titles), element("tbody", *rows)), label)
