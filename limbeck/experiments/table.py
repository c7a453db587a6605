"""All papers at a glance: a Markdown table, and one page that works offline, sorts, filters and draws every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.experiments.catalogue import catalogue, entry, paper_files
from limbeck.experiments.commands import mean_of
from limbeck.report.shell import document
from limbeck.report.svg import Scale, element, text

WORDS = {"holds": "met", "does not hold": "missed", "inconclusive": "open", None: ""}
ORDER = ("holds", "inconclusive", "does not hold", None)
WIDTH, ROW, PAD = 260, 36, 4


def entries(folder: Path | None = None) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Every catalogue row with its ledger entry, or None."""
    return [(row, entry(row["name"], folder)) for row in catalogue()]


def markdown(folder: Path | None = None) -> str:
    """The papers that were run, with their comparisons, and the list of those that were not."""
    rows = entries(folder)
    run = [(row, found) for row, found in rows if found]
    counts = ", ".join(f"{sum(found['verdict'] == word for _, found in run)} {word}" for word in ORDER if word)
    units = sum(found["seconds"]["units"] for _, found in run)
    shared = sum(found["seconds"]["shared"] for _, found in run)
    saved = sum(found["seconds"]["saved_by_store"] for _, found in run)
    lines = [
        "# Papers",
        "",
        "Written by `limbeck papers table`. Each row re-checks a paper's claim in miniature: paired differences over seeds (positive is",
        "better) with their 95 % interval. `limbeck papers run NAME` runs it again; `limbeck papers show NAME` tells the idea.",
        "",
        f"{len(run)} of {len(rows)} systems were run: {counts}. All runs took {units / 60:.0f} minutes of one thread each",
        f"plus {shared / 60:.0f} for what they share (teachers, features); the store saved {saved / 60:.0f} by keeping those.",
        "",
        "| id | name | verdict | miniature | comparison | difference (95 % interval) | seeds |",
        "|---:|---|---|---|---|---|---:|",
    ]
    for row, found in run:
        for at, made in enumerate(found["comparisons"]):
            first = at == 0
            against = f"{made['method']} against {made['against']}, {made['metric']}"
            if made["margin"]:
                against += f" (margin {made['margin']:g})"
            difference = f"{made['mean']:+.4g} ({made['low']:+.4g} to {made['high']:+.4g})"
            cells = (
                f"{row['id']}" if first else "",
                f"[{row['name']}](../limbeck/papers/{row['name']}.py)" if first else "",
                f"**{found['verdict']}**" if first else "",
                _cell(found["claim"]) if first else "",
                _cell(against if made["decisive"] else f"({against})"),
                difference if made["decisive"] else f"({difference})",
                str(len(found["plan"]["seeds"])) if first else "",
            )
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Comparisons in brackets are shown, but do not decide. Not run yet:", ""]
    lines += [", ".join(f"{row['name']} ({row['id']})" for row, found in rows if not found) + "."]
    return "\n".join(lines) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("\n", " ")


def page_of(folder: Path | None = None) -> str:
    """The page: one HTML file that needs nothing but itself."""
    rows = entries(folder)
    here = paper_files()
    titles = {
        row["id"]: at for at, row in enumerate(sorted((row for row, _ in rows), key=lambda r: r["title"].lower()))
    }
    families = sorted({row["family"] for row, _ in rows})
    head = "".join(
        element(
            "th",
            element("button", text(words), type="button"),
            scope="col",
            aria_sort="ascending" if words == "Id" else "none",
            class_="number" if words == "Id" else None,
        )
        for words in ("Id", "System", "Family", "Verdict", "Effect")
    )
    body = "".join(_row(row, found, row["name"] in here, titles[row["id"]], families) for row, found in rows)
    table = element(
        "table", element("thead", f"<tr>{head}</tr>"), element("tbody", body), class_="papers", data_sortable=True
    )
    run = [found for _, found in rows if found]
    facts = f"{len(rows)} published systems; {len(run)} checked in miniature: " + ", ".join(
        f"{sum(found['verdict'] == word for found in run)} {word}" for word in ORDER if word
    )
    options = "".join(element("option", text(name), value=name) for name in families)
    verdicts = "".join(element("option", text(word or "not run"), value=word or "none") for word in ORDER)
    controls = element(
        "form",
        element("label", "Search ", element("input", type="search", id="find", autocomplete="off")),
        element("label", "Family ", element("select", element("option", "all", value=""), options, id="family")),
        element("label", "Verdict ", element("select", element("option", "all", value=""), verdicts, id="verdict")),
        element("output", f"{len(rows)} shown", id="count"),
        class_="filters",
    )
    hint = (
        "Each mark is one seed's paired difference, signed so that right of the line is better; the bar is the 95 % interval. "
        "Faint bars are shown but do not decide the verdict."
    )
    heading = element(
        "header", element("h1", "Papers, re-checked in miniature"), element("p", text(facts), class_="facts")
    )
    scroll = element("div", table, class_="scroll", tabindex=0, role="region", aria_label="All systems")
    main = element("main", heading, element("section", controls, element("p", text(hint), class_="hint"), scroll))
    more = [Path(__file__).with_name(name) for name in ("papers.css", "papers.js")]
    return document("Limbeck: papers", main, more=more)


def _row(row: dict[str, Any], found: dict[str, Any] | None, here: bool, rank: int, families: list[str]) -> str:
    verdict = found["verdict"] if found else None
    words = verdict or ("not run" if here else "")
    name = element("span", text(row["name"]), class_="name")
    title = element("span", text(row["title"]), class_="form")
    claim = element("span", text(found["claim"] if found else row["claim"]), class_="small")
    main = next((made for made in found["comparisons"] if made["decisive"]), None) if found else None
    effect = f"{main['mean'] / main['deviation']:.4g}" if main and main["deviation"] > 0 else ""
    return element(
        "tr",
        element("td", str(row["id"]), class_="number", data_sort=row["id"]),
        element("th", name, title, claim, scope="row", data_sort=rank),
        element("td", text(row["family"].replace("_", " ")), data_sort=families.index(row["family"])),
        element("td", element("span", text(words), class_=f"state {WORDS[verdict]}"), data_sort=ORDER.index(verdict)),
        element("td", plot(found) if found else "", data_sort=effect),
        data_family=row["family"],
        data_verdict=verdict or "none",
        data_words=" ".join((row["name"], row["title"], row["claim"], str(row["id"]))).lower(),
    )


def _label(made: dict[str, Any]) -> str:
    method = "" if made["method"] == "method" else f"{made['method']} "
    words = f"{made['metric']}: {method}against {made['against']}".replace("_", " ")
    return words if len(words) <= 44 else words[:43] + "…"


def plot(found: dict[str, Any], labels: Sequence[str] = (), reach: Mapping[str, Sequence[float]] | None = None) -> str:
    """The comparisons of an entry as SVG: one line each, with the seeds' differences and the interval around the zero line.

    Each line has its own scale, in units of its own metric, because metrics differ; the zero (or minus the margin) is dashed.
    labels: of the lines. reach: by metric, differences that the scale of a line must reach too, so that several plots have one scale.
    """
    rows = found["comparisons"]
    parts = []
    for at, made in enumerate(rows):
        top, middle = PAD + ROW * at, PAD + ROW * at + 24
        edge = -made["margin"]
        scale = Scale.fit(
            [*made["differences"], made["low"], made["high"], edge, 0.0, *(reach or {}).get(made["metric"], ())],
            6,
            WIDTH - 6,
            log=False,
        )
        shade = "mark" if made["decisive"] else "mark faint"
        words = (
            f"{made['method']} {mean_of(found, made['method'], made['metric']):.4g}, {made['against']} "
            f"{mean_of(found, made['against'], made['metric']):.4g} ({made['metric']}): {made['mean']:+.4g} "
            f"[{made['low']:+.4g}, {made['high']:+.4g}], {made['verdict']}"
        )
        parts.append(
            element(
                "g",
                element("rect", x=0, y=top, width=WIDTH, height=ROW, class_="hit"),
                element("text", text(labels[at] if labels else _label(made)), x=0, y=top + 11, class_="label"),
                element("line", x1=scale(edge), x2=scale(edge), y1=middle - 8, y2=middle + 8, class_="zero"),
                element(
                    "line",
                    x1=scale(made["low"]),
                    x2=scale(made["high"]),
                    y1=middle,
                    y2=middle,
                    class_=f"{shade} interval",
                ),
                *(
                    element("circle", cx=scale(value), cy=middle, r=2.6, class_=f"{shade} seed")
                    for value in made["differences"]
                ),
                element(
                    "line",
                    x1=scale(made["mean"]),
                    x2=scale(made["mean"]),
                    y1=middle - 6,
                    y2=middle + 6,
                    class_=f"{shade} mean",
                ),
                data_tip=words,
                tabindex=0,
                role="img",
                aria_label=words,
            )
        )
    height = 2 * PAD + ROW * len(rows)
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", width=WIDTH, height=height, class_="effect")
