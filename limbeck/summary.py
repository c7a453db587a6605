"""Several seeds of one recipe: mean, spread, and paired differences with their 95 % interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.files import write_json
from limbeck.recipe import Recipe


def paired_interval(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Mean of first - second, paired by position, and its 95 % interval by Student's t with n - 1 degrees of freedom.

    mean +- t_{0.975, n-1} s / sqrt(n), s the standard deviation of the differences. Raises ValueError for fewer than two pairs.
    """
    from scipy import stats

    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"paired differences need two series of equal length of at least 2, got {len(first)} and {len(second)}"
        )
    differences = [a - b for a, b in zip(first, second)]
    mean = statistics.fmean(differences)
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(differences)}


def run_seeds(
    recipe: Recipe, out: Path, count: int, *, trust: Sequence[str] = (), progress: bool = True
) -> dict[str, Any]:
    """Run a recipe with `count` seeds, from its own on, each in out/seed-N, and write out/summary.json.

    A teacher whose recipe fixes its `seed` is trained once and shared.
    """
    from limbeck.pipeline import run_recipe

    reports = []
    for seed in range(recipe.seed, recipe.seed + count):
        result = run_recipe(
            recipe.model_copy(update={"seed": seed}), out / f"seed-{seed}", trust=trust, progress=progress
        )
        reports.append(result.report)
        summary = summarize(reports)
        write_json(out / "summary.json", summary)
    return summary


def summarize(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Per stage and measurement: the values by seed, their mean and standard deviation; and, where a stage called `baseline` was
    trained beside a first distill step, the paired difference of the task's metric."""
    stages = []
    for index, stage in enumerate(reports[0]["stages"]):
        row = {"name": stage["name"], "form": stage["form"], "measurements": {}}
        for name, first in stage["measurements"].items():
            values = [report["stages"][index]["measurements"][name]["value"] for report in reports]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row["measurements"][name] = {
                "values": values,
                "mean": statistics.fmean(values),
                "deviation": spread,
                "unit": first["unit"],
            }
        stages.append(row)
    task = reports[0]["task"]
    summary = {
        "name": reports[0]["name"],
        "seeds": [r["seed"] for r in reports],
        "task": task,
        "environment": reports[0]["environment"],
        "stages": stages,
    }
    names = [row["name"] for row in stages]
    if "baseline" in names and names.index("baseline") + 1 < len(stages) and len(reports) > 1:
        alone = stages[names.index("baseline")]
        distilled = stages[names.index("baseline") + 1]
        values = [s["measurements"][task["metric"]]["values"] for s in (distilled, alone)]
        summary["paired"] = {
            "metric": task["metric"],
            "of": distilled["name"],
            "against": "baseline",
            **paired_interval(*values),
        }
    return summary


def seeds_table(summary: dict[str, Any]) -> Any:
    """The summary as a table for the terminal: mean and standard deviation over the seeds."""
    from rich.table import Table

    metric = summary["task"]["metric"]
    shown = [(metric, 1.0, ".4f"), ("bytes", 1e-3, ".1f"), ("latency", 1e3, ".3f"), ("throughput", 1.0, ".0f")]
    table = Table(title=f"{summary['name']}: {len(summary['seeds'])} seeds, mean and standard deviation")
    table.add_column("stage")
    table.add_column("form")
    for title in (metric, "kB", "latency ms", "items/s"):
        table.add_column(title, justify="right")
    for row in summary["stages"]:
        cells = []
        for name, scale, style in shown:
            found = row["measurements"].get(name)
            cells.append(f"{found['mean'] * scale:{style}} ± {found['deviation'] * scale:{style}}" if found else "")
        table.add_row(row["name"], row["form"], *cells)
    if "paired" in summary:
        p = summary["paired"]
        table.caption = f"{p['of']} - {p['against']}, {p['metric']}: {p['mean']:+.4f}, 95 % interval [{p['low']:+.4f}, {p['high']:+.4f}]"
    return table
