"""The model card: README.md of an artifact, with the numbers of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limbeck.build import Lineage


def model_card(
    past: Lineage, tensors: Mapping[str, Tensor], report: Mapping[str, Any] | None, exports: Sequence[str] = ()
) -> str:
    """Markdown: what the model is, how it was made, what was measured, how to load it."""
    report = report or {}
    elements, size = sum(t.numel() for t in tensors.values()), sum(t.nbytes for t in tensors.values())
    module = past.factory.target.partition(":")[0]
    trusted = (module + ".").startswith("limbeck.models.")
    trust = "" if trusted else f', trust=["{module.split(".")[0]}"]'
    lines = ["---", "library_name: limbeck", "---", "", f"# {_plain(report.get('name') or 'A compressed model')}", ""]
    task = report.get("task") or {}
    if task:
        lines += [f"Task: {_plain(task.get('name'))} on {_plain(task.get('dataset'))}.", ""]
    lines += [
        f"{elements:,} stored values in {size:,} bytes of weights. Built by `{past.factory.target}`, "
        + (f"then {', '.join(f'`{plan.kind}`' for plan in past.plans)}." if past.plans else "unchanged since."),
        "",
        *_table(report),
        "## Use",
        "",
        "```python",
        "import limbeck",
        "",
        f'model = limbeck.load("path/to/this/folder"{trust})',
        "```",
        "",
    ]
    if exports:
        lines += ["## Files for other runtimes", "", *(f"- `{name}`" for name in exports), ""]
    if report:
        lines += _environment(report)
    return "\n".join(lines).rstrip() + "\n"


def _table(report: Mapping[str, Any]) -> list[str]:
    stages = report.get("stages") or []
    names = list(dict.fromkeys(name for stage in stages for name in stage.get("measurements", {})))
    if not names:
        return []
    lines = ["## Measured", "", "| stage | form | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for stage in stages:
        cells = [number(stage["measurements"].get(name)) for name in names]
        lines.append(f"| {_plain(stage.get('name'))} | {_plain(stage.get('form'))} | " + " | ".join(cells) + " |")
    lines += ["", "The value is the median of the runs, with the quartiles in brackets where there were several.", ""]
    return lines


def number(measurement: Mapping[str, Any] | None) -> str:
    """A measurement as text: `0.981`, `1.20 ms [1.18, 1.25]`, `81,234 bytes`; a dash when it was not taken."""
    if measurement is None:
        return "-"
    unit = measurement.get("unit") or ""

    def text(value: float) -> str:
        if unit == "seconds":
            return f"{value * 1000:.3g}"
        return f"{value:,.0f}" if unit and float(value).is_integer() else f"{value:.4g}"

    shown = "ms" if unit == "seconds" else unit
    low, high = measurement.get("low"), measurement.get("high")
    spread = f" [{text(low)}, {text(high)}]" if measurement.get("runs", 1) > 1 and low is not None else ""
    return f"{text(measurement['value'])}{' ' + shown if shown else ''}{spread}"


def _environment(report: Mapping[str, Any]) -> list[str]:
    where = report.get("environment") or {}
    lines = ["## How this was measured", ""]
    lines += [f"- {_plain(key)}: {_plain(value)}" for key, value in where.items()]
    lines += [f"- seed: {report['seed']}"] if "seed" in report else []
    lines += [f"- created: {_plain(report['created'])}"] if "created" in report else []
    return [*lines, "", "The whole report is in `report.json`, the recipe in `recipe.yaml`.", ""]


def _plain(value: Any) -> str:
    """Text that cannot break a table or a heading."""
    return " ".join(str(value).replace("|", "/").split())
