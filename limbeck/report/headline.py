"""The top of the page: what was achieved, in one sentence and a card per main number."""

from __future__ import annotations

from limbeck.measure.base import Measurement
from limbeck.report.report import Report, Stage
from limbeck.report.svg import element, text
from limbeck.report.words import change, shown, spread, title

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
    if spread(now):
        parts.append(element("p", text(spread(now)), class_="from"))
    if before is not None:
        first = before.measurements[now.name]
        improved = now.value < first.value if now.better == "lower" else now.value > first.value
        parts.append(element("p", text(change(first, now)), class_="change better" if improved else "change"))
        from_words = f"from {shown(first)}, {before.name}"
        if before.runtime != report.final.runtime and now.name in RUNTIME_BOUND:
            from_words += f" in {before.runtime}"
        parts.append(element("p", text(from_words), class_="from"))
    return element("div", *parts, class_="card")
