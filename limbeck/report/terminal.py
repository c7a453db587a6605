"""The stages as a table for the terminal: what was measured and how it compares with the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from limbeck.report.report import Report, Stage
from limbeck.report.words import change, shown, spread, title

CAPTION = "Below each number: the change against the first stage; 3.5× is 3.5 times smaller or faster."
SHORT = ("parameters", "bytes", "latency", "peak_memory")  # beside the main metric


def stage_table(report: Report | Mapping[str, Any], full: bool = False) -> Table:
    """One row per stage: the main metric and the main costs, each with its change against the first stage.

    `report` is a Report or the content of report.json; `full` shows every measurement and the spread of repeated ones.
    """
    report = Report.of(report)
    names = report.measured()
    if not full:
        names = [name for name in names if name == report.metric or name in SHORT]
    forms = {stage.form for stage in report.stages}
    words = [
        report.name,
        report.task["name"].replace("_", " "),
        report.task["dataset"],
        *(forms if len(forms) == 1 else ()),
    ]
    heading = Text(" · ".join(filter(None, words)))
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    if len(report.stages) > 1 and not full:
        table.caption, table.caption_justify = Text(CAPTION, style="dim"), "left"
    table.add_column("stage", overflow="fold")
    for name in names:
        table.add_column(title(name), justify="right", overflow="fold")
    for stage in report.stages:
        table.add_row(
            _first_cell(stage, len(forms) > 1), *(_cell(report.stages[0], stage, name, full) for name in names)
        )
    return table


def _first_cell(stage: Stage, with_form: bool) -> Text:
    form = stage.form.replace("onnxruntime", "onnx")
    return Text.assemble((stage.name, "bold"), *(("\n", (form, "dim")) if with_form else ()))


def _brief(words: str) -> str:
    """A change without the words that its column and the caption say already."""
    for known in (" points", " smaller", " faster", " less"):
        words = words.removesuffix(known)
    return words


def _cell(first: Stage, stage: Stage, name: str, full: bool) -> Text:
    if name not in stage.measurements:
        return Text("-", style="dim")
    measurement, lines = stage.measurements[name], []
    if stage is not first and name in first.measurements:
        words = change(first.measurements[name], measurement)
        lines.append(words if full else _brief(words))
    if full:
        lines.append(spread(measurement))
    text = Text(shown(measurement))
    for line in filter(None, lines):
        text.append("\n" + line, style="dim")
    return text
