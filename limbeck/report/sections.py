"""The sections of the page: each a function from the report to HTML, empty where there is nothing to show."""

from __future__ import annotations

import yaml

from limbeck.report.charts import reliability_diagram, tradeoff
from limbeck.report.headline import RUNTIME_BOUND
from limbeck.report.report import Report, Stage
from limbeck.report.svg import element, text
from limbeck.report.words import PERCENT, change, exact, quantity, shown, spread, title


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
    words = (
        "Small print: the change against the first stage, then the quartiles of repeated runs. Best values are bold."
    )
    if "†" in table:
        words += " † against another runtime, so not the model's doing alone."
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
        quality = entry.get("quality")
        again = quality.get(report.metric) if isinstance(quality, dict) else None
        cells = (
            element("code", text(entry["file"])),
            text(quantity(entry["bytes"], "bytes", "bytes")),
            text(difference),
            text(f"{again:.4g}" if isinstance(again, (int, float)) else "–"),
        )
        rows.append(
            element("tr", element("th", text(entry["name"]), scope="row"), *(element("td", cell) for cell in cells))
        )
    return (
        _table(
            ("Export", "File", "Size", "Largest difference from torch", f"{report.metric} of what was written"),
            rows,
            "Exports",
        )
        if rows
        else ""
    )


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
    return _scroll(element("table", element("thead", titles), element("tbody", *rows), class_="plain"), label)
