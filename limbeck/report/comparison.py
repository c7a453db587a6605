"""A comparison of objectives (the content of comparison.json) as tables for the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from limbeck.measure.base import Measurement
from limbeck.report.shell import document
from limbeck.report.svg import element, text
from limbeck.report.words import PERCENT, shown, signed, significant, spread, title

COLOURS = {"holds": "green", "does not hold": "red", "inconclusive": "yellow"}
WORDS = {"holds": "better", "does not hold": "worse", "inconclusive": "open"}
CAPTION = (
    "± standard deviation over seeds. Differences are paired by seed (of percentages: points), positive is better, with their 95 % interval (each for "
    "itself, not corrected for their number). Time and memory of one training step, forward and backward."
)
SCALES = "Means over the first steps. Pull: the term's share of weight x factor x gradient norm."
Found = Mapping[str, Any]


def _metrics(found: Found) -> list[str]:
    known = found["objectives"][0]["metrics"]
    return [name for name in (found["task"]["metric"], "calibration_error") if name in known]


def _value(row: Found, metric: str) -> str:
    made = row["metrics"][metric]
    if metric in PERCENT:
        return f"{100 * made['mean']:.2f} ± {100 * made['deviation']:.2f} %"
    return f"{significant(made['mean'], 4)} ± {significant(made['deviation'], 2)}"


def _difference(found: Found, row: Found, metric: str) -> Found | None:
    rows = (d for d in found["comparisons"] if d["objective"] == row["name"] and d["metric"] == metric)
    return next(rows, None)


def _interval(made: Found) -> str:
    factor, decimals = (100, 2) if made["metric"] in PERCENT else (1, 4)
    mean, low, high = (signed(factor * made[name], decimals) for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _cost(row: Found, name: str) -> Measurement:
    return Measurement(**row["costs"][name])


def comparison_table(found: Found) -> Table:
    """One row per objective: quality and calibration with their paired differences, time and memory of a step."""
    seeds = len(found["seeds"])
    heading = f"{found['name']}: {seeds} seed{'s' * (seeds != 1)}, {found['split']} split"
    table = Table(title=escape(heading), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = escape(CAPTION), "left"
    table.add_column("objective", overflow="fold")
    for name in [*map(title, _metrics(found)), "step", "memory"]:
        table.add_column(name, justify="right", overflow="fold")
    for row in found["objectives"]:
        cells = []
        for metric in _metrics(found):
            made = _difference(found, row, metric)
            below = f"\n[{COLOURS[made['verdict']]}]{escape(_interval(made))}[/]" if made else ""
            cells.append(_value(row, metric) + below)
        for name in ("step_time", "step_memory"):
            cost = _cost(row, name)
            cells.append(shown(cost) + (f"\n[dim]{spread(cost)}[/]" if spread(cost) else ""))
        reference = "\n[dim]the others are compared with it[/]" if row["name"] == found["against"] else ""
        table.add_row(f"[bold]{escape(row['name'])}[/]{reference}", *cells)
    return table


def scales_table(found: Found) -> Table:
    """One row per term of every objective: how large it is and how hard it pulls at the student."""
    table = Table(title="Scales of the terms", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = SCALES, "left"
    for name, _, right in _SCALES:
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in found["objectives"]:
        for scale in row["scales"]:
            table.add_row(*(escape(words) for words in _scale_cells(row, scale)))
    return table


_SCALES = (
    ("objective", None, False),
    ("term", "name", False),
    ("weight", "weight", True),
    ("value", "value", True),
    ("gradient norm", "gradient_norm", True),
    ("factor", "factor", True),
    ("pull", "share", True),
)


def _scale_cells(row: Found, scale: Found) -> list[str]:
    cells = [row["name"], scale["name"]]
    cells += [significant(scale[key]) for _, key, _ in _SCALES[2:-1]]
    return [*cells, f"{100 * scale['share']:.1f} %"]


def comparison_page(found: Found) -> str:
    """The page: one HTML file that needs nothing but itself."""
    from limbeck.experiments.table import plot

    arms = {
        row["name"]: {
            "seeds": {
                seed: {"metrics": {name: made["values"][at] for name, made in row["metrics"].items()}}
                for at, seed in enumerate(found["seeds"])
            }
        }
        for row in found["objectives"]
    }
    metrics = _metrics(found)
    reach: dict[str, list[float]] = {}
    for made in found["comparisons"]:
        reach.setdefault(made["metric"], []).extend((made["low"], made["high"], *made["differences"]))
    head = ["Objective", *map(title, metrics), "Step", "Memory", *(["Difference"] if found["comparisons"] else [])]
    body = []
    for row in found["objectives"]:
        name = element("span", text(row["name"]), class_="name")
        if row["name"] == found["against"]:
            name += element("span", "the others are compared with it", class_="form")
        cells = [element("th", name, scope="row", data_sort=row["name"])]
        cells += [
            element("td", text(_value(row, m)), class_="number", data_sort=row["metrics"][m]["mean"]) for m in metrics
        ]
        for kind in ("step_time", "step_memory"):
            cost = _cost(row, kind)
            cells.append(element("td", text(shown(cost)), class_="number", data_sort=cost.value, title=spread(cost)))
        if found["comparisons"]:
            rows = [
                {**made, "method": "method", "margin": 0.0, "decisive": True, "verdict": WORDS[made["verdict"]]}
                for made in found["comparisons"]
                if made["objective"] == row["name"]
            ]
            shaped = {"comparisons": rows, "arms": {**arms, "method": arms[row["name"]]}}
            labels = [f"{title(made['metric'])} {_interval(made)}" for made in rows]
            cells.append(element("td", plot(shaped, labels, reach) if rows else "", data_sort=""))
        body.append(element("tr", *cells))
    first = _table(head, body)
    scales = [
        element("tr", *(element("td", text(words)) for words in _scale_cells(row, scale)))
        for row in found["objectives"]
        for scale in row["scales"]
    ]
    second = _table([name.capitalize() for name, _, _ in _SCALES], scales)
    facts = f"{len(found['seeds'])} seeds, {found['split']} split, {found['task']['metric']}"
    main = element(
        "main",
        element(
            "header", element("h1", text(f"{found['name']}: objectives compared")), element("p", facts, class_="facts")
        ),
        element("section", first, element("p", text(CAPTION), class_="hint")),
        element("section", element("h2", "Scales of the terms"), second, element("p", text(SCALES), class_="hint")),
    )
    return document(
        f"{found['name']}: objectives compared",
        main,
        more=[Path(__file__).parent.parent / "experiments" / "papers.css"],
    )


def _table(head: list[str], rows: list[str]) -> str:
    cells = (
        element("th", element("button", text(words), type="button"), scope="col", aria_sort="none") for words in head
    )
    made = element(
        "table", element("thead", element("tr", *cells)), element("tbody", *rows), class_="stages", data_sortable=True
    )
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label=head[0])
