"""The report page: one HTML file that needs nothing but itself.

Everything is drawn here, as HTML and SVG; the script in it adds tooltips, sorting and the theme switch, and the page
reads well without it. Whatever comes from the report is escaped, and the page forbids itself every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.files import write_text
from limbeck.report import sections
from limbeck.report.headline import headline
from limbeck.report.layers import layers
from limbeck.report.report import Report
from limbeck.report.shell import document
from limbeck.report.svg import element, text
from limbeck.report.training import training

SECTIONS = (
    ("stages", "Stages", sections.stages),
    ("tradeoffs", "Trade-offs", sections.tradeoffs),
    ("layers", "Layers", layers),
    ("training", "Training", training),
    ("reliability", "Reliability", sections.reliability),
    ("budget", "Budget", sections.budget),
    ("exports", "Exports", sections.exports),
    ("recipe", "Recipe", sections.recipe),
    ("environment", "Environment", sections.environment),
    ("measured", "How it was measured", sections.measured),
)


def page(report: Mapping[str, Any] | Report) -> str:
    """The whole page as a string. Raises ArtifactError for a report that is not one."""
    report = Report.of(report)
    made = [(anchor, words, draw(report)) for anchor, words, draw in SECTIONS]
    made = [(anchor, words, body) for anchor, words, body in made if body]
    links = (element("a", text(words), href=f"#{anchor}") for anchor, words, _ in made)
    body = (
        element(
            "section",
            element("h2", text(words), id=f"{anchor}-title"),
            content,
            id=anchor,
            aria_labelledby=f"{anchor}-title",
        )
        for anchor, words, content in made
    )
    return document(f"{report.name}: Limbeck report", element("main", headline(report), *body), links)


def write_page(report: Mapping[str, Any] | Report, path: Path | str) -> None:
    """Write the page of a report (the content of report.json) to one HTML file, whole or not at all."""
    write_text(path, page(report))
