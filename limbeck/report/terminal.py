"""The stages as a table for the terminal: what was measured and how it compares with the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from limbeck.report.report import Report, Stage
from limbeck.report.words import change, shown, spread, title

SHORT = ("parameters", "bytes", "latency", "peak_memory")  # beside the main metric


def stage_table(report: Report | Mapping[str, Any], full: bool = False) -> Table:
    """One row per stage: the main metric and the main costs, each with its change against the first stage.

    `report` is a Report or the content of report.json; `full` shows every measurement and the spread of repeated ones.
    """
    report = Report.of(report)
    names = report.measured()
    if not full:
        names = [name for name in names if name == report.metric or name in SHORT]
    table = Table(title=Text(f"{report.name}: {report.task['name']}, {report.task['dataset']}"), title_justify="left")
    table.add_column("stage", no_wrap=False, min_width=12)
    for name in names:
        table.add_column(title(name).lower(), justify="right")
    for stage in report.stages:
        table.add_row(_first_cell(stage), *(_cell(report.stages[0], stage, name, full) for name in names))
    return table


def _first_cell(stage: Stage) -> Text:
    return Text.assemble((stage.name, "bold"), "\n", (stage.form, "dim"))


def _cell(first: Stage, stage: Stage, name: str, full: bool) -> Text:
    if name not in stage.measurements:
        return Text("-", style="dim")
    measurement, lines = stage.measurements[name], []
    if stage is not first and name in first.measurements:
        lines.append(change(first.measurements[name], measurement))
    if full:
        lines.append(spread(measurement))
    text = Text(shown(measurement))
    for line in filter(None, lines):
        text.append("\n" + line, style="dim")
    return text
