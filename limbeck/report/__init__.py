"""The report of a run: as data (`Report`, `Stage`), as a table for the terminal and as one HTML page."""

from limbeck.report.page import page, write_page
from limbeck.report.report import Report, Stage, now, pareto
from limbeck.report.terminal import stage_table

__all__ = ["Report", "Stage", "now", "page", "pareto", "stage_table", "write_page"]
