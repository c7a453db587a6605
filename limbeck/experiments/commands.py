"""`limbeck papers`: list, show, run, table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from limbeck.errors import LimbeckError, UsageError

app = typer.Typer(
    name="papers",
    help="Published methods, each with a claim that can be re-run in miniature.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output instead of text.")]
Ledger = Annotated[Path | None, typer.Option("--ledger", help="Folder of the results; ledger/ when absent.")]
COLOURS = {"holds": "green", "inconclusive": "yellow", "does not hold": "red"}


def _print(value: Any) -> None:
    from limbeck.cli import say

    say(value)


def _show(value: Any) -> None:
    from limbeck.cli import show

    show(value)


@app.command("list")
def list_(
    family: Annotated[str | None, typer.Option("--family", help="Only this family.")] = None,
    here: Annotated[bool, typer.Option("--here", help="Only those that can be run.")] = False,
    ledger: Ledger = None,
    as_json: Json = False,
) -> None:
    """List the catalogue: id, name, title, family, verdict (empty where nothing was run yet)."""
    from limbeck.experiments.catalogue import listing, paper_files

    rows = listing(family, ledger)
    if here:
        rows = [row for row in rows if row["name"] in paper_files()]
    if as_json:
        _show(rows)
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "name", "family", "verdict", "title"):
        table.add_column(name, justify="right" if name == "id" else "left", overflow="fold")
    for row in rows:
        found = row["verdict"] or ""
        table.add_row(
            str(row["id"]),
            row["name"],
            row["family"],
            f"[{COLOURS.get(found, 'dim')}]{found}[/]" if found else "",
            row["title"],
        )
    _print(table)
    run = sum(row["verdict"] is not None for row in rows)
    _print(f"{len(rows)} systems, {run} with a verdict. Next: limbeck papers show NAME, limbeck papers run NAME")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A paper's name or id.")], ledger: Ledger = None, as_json: Json = False
) -> None:
    """Show the idea, the claim, the composition and the last result of one paper."""
    from limbeck.experiments.catalogue import entry, idea, paper_files, row_of

    row = row_of(name)
    here = row["name"] in paper_files()
    found = entry(row["name"], ledger)
    composition = None
    if here:
        from limbeck.experiments.units import load_paper

        composition = load_paper(row["name"]).composition
    words = idea(row["name"]) if here else ""
    if as_json:
        _show({**row, "idea": words, "composition": composition, "result": found})
        return
    from rich.markup import escape

    _print(f"[bold]{row['id']}  {escape(row['title'])}[/]\n{row['name']}, {row['family']}")
    _print(f"\n[bold]Claim[/]  {escape(row['claim'])}")
    if not here:
        _print("\nNot here yet.")
        return
    _print(f"\n{escape(words)}\n\n[bold]Composition[/]  {escape(composition or '')}")
    if found is None:
        _print(f"\nNot run yet: limbeck papers run {row['name']}")
        return
    _print(f"\n[bold]In miniature[/]  {escape(found['claim'])}")
    _print(result_table(found))


@app.command()
def run(
    names: Annotated[list[str], typer.Argument(help="Papers' names or ids, `all`, or a dotted path to one's own.")],
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, help="How many seeds, fixed before the run; the paper's plan when absent."),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at a time; each uses one thread.")] = 1,
    backend: Annotated[
        str, typer.Option("--on", help="processes (of this machine) or ray (RAY_ADDRESS, else a local cluster).")
    ] = "processes",
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what was finished before.")] = False,
    ledger: Ledger = None,
    as_json: Json = False,
) -> None:
    """Run miniatures and write ledger/NAME.json. The same command continues a run that was cut off."""
    from limbeck.experiments.catalogue import paper_files, row_of
    from limbeck.experiments.runner import run_papers

    wanted: list[str] = []
    for name in names:
        if name == "all":
            wanted += sorted(paper_files())
        elif "." in name or name in paper_files():
            wanted.append(name)
        else:
            row = row_of(name)
            if row["name"] not in paper_files():
                raise UsageError(
                    f"{row['name']!r} is in the catalogue, but not here yet: `limbeck papers list --here` lists what runs"
                )
            wanted.append(row["name"])
    found = run_papers(
        list(dict.fromkeys(wanted)),
        seeds=seeds,
        jobs=jobs,
        backend=backend,
        ledger=ledger,
        fresh=fresh,
        progress=not as_json,
    )
    if as_json:
        _show(found)
        return
    for result in found:
        _print(f"\n[bold]{result['name']}[/]  {result['claim']}")
        _print(result_table(result))


@app.command()
def table(
    out: Annotated[Path, typer.Option("--out", "-o", help="The table, as Markdown.")] = Path("docs/papers.md"),
    page: Annotated[
        Path | None, typer.Option("--page", help="The page; beside the table, as .html, when absent.")
    ] = None,
    ledger: Ledger = None,
    as_json: Json = False,
) -> None:
    """Write the table of all papers as Markdown, and a page that sorts and filters with a small plot per paper."""
    from limbeck.experiments.table import markdown, page_of
    from limbeck.files import write_text

    target = page or out.with_suffix(".html")
    try:
        write_text(out, markdown(ledger))
        write_text(target, page_of(ledger))
    except OSError as error:
        raise LimbeckError(f"cannot write {out}: {error}") from error
    _show({"table": str(out), "page": str(target)}) if as_json else _print(f"Wrote {out} and {target}")


def result_table(found: dict[str, Any]) -> Any:
    """A ledger entry's comparisons as a table for the terminal."""
    from rich import box
    from rich.table import Table

    seeds = len(found["plan"]["seeds"])
    made = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{found['verdict']}: {seeds} seeds, {found['seconds']['units']:.0f} s on one thread",
        title_justify="left",
        title_style=f"bold {COLOURS[found['verdict']]}",
    )
    for name in ("metric", "comparison", "means", "difference", "interval", "verdict"):
        made.add_column(name, justify="right" if name in ("difference", "means") else "left")
    for row in found["comparisons"]:
        sides = [mean_of(found, row[side], row["metric"]) for side in ("method", "against")]
        allowed = f" (margin {row['margin']:g})" if row["margin"] else ""
        made.add_row(
            f"{row['metric']}, {row['better']}",
            f"{row['method']} against {row['against']}{allowed}",
            f"{sides[0]:.4g} / {sides[1]:.4g}",
            f"{row['mean']:+.4g}",
            f"{row['low']:+.4g} to {row['high']:+.4g}",
            f"[{COLOURS[row['verdict']]}]{row['verdict']}[/]" + ("" if row["decisive"] else " [dim](not decisive)[/]"),
        )
    return made


def mean_of(found: dict[str, Any], arm: str, metric: str) -> float:
    """The mean of a metric over an arm's seeds, as the ledger has it."""
    values = [run["metrics"][metric] for run in found["arms"][arm]["seeds"].values()]
    return sum(values) / len(values)
