"""The `limbeck` command.

Exit codes: 0 done; 1 any other failure; 2 a mistake in a recipe or an argument; 3 data; 4 a damaged or untrusted artifact; 5 training
stopped; 6 an export failed or lost quality; 7 the result does not keep to the budget (it is written all the same); 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from limbeck.errors import BudgetError, LimbeckError, UsageError
from limbeck.experiments.commands import app as papers

app = typer.Typer(
    name="limbeck",
    help="Make neural networks small: distil, prune, factorize and quantize under a measured budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(papers, name="papers")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output instead of text.")]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", help="A package whose code may be imported. Repeat for several.", metavar="PACKAGE"),
]


def show(value: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def say(text: Any) -> None:
    """Print for people."""
    Console().print(text)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a commented recipe that runs as it is (scikit-learn's handwritten digits)."""
    from limbeck.files import write_text

    if path.exists() and not force:
        raise UsageError(f"{path} exists. Name another file, or say --force to replace it")
    write_text(path, (Path(__file__).parent / "recipe_template.yaml").read_text())
    if as_json:
        show({"recipe": str(path)})
    else:
        say(f"Wrote {path}. Next: limbeck compress {path} --out runs/first")


@app.command()
def compress(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the run. The same command continues a run that was cut off.")
    ],
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Replaces the recipe's seed.")] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Run that many seeds, from the recipe's on, and summarize them.")
    ] = 1,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Compress a model as a recipe says; measure every form; write the artifact, the exports and the report page."""
    from limbeck.pipeline import run_recipe
    from limbeck.recipe import Recipe

    parsed = Recipe.load(recipe)
    if seed is not None:
        parsed = parsed.model_copy(update={"seed": seed})
    if seeds > 1:
        from limbeck.summary import run_seeds, seeds_table

        summary = run_seeds(parsed, out, seeds, trust=tuple(trust or ()), progress=not as_json)
        show(summary) if as_json else say(seeds_table(summary))
        return
    result = run_recipe(parsed, out, trust=tuple(trust or ()), progress=not as_json)
    if as_json:
        show(result.to_json())
    else:
        say(result.table())
        say(f"Artifact     {result.folder / 'artifact'}\nReport page  {result.folder / 'report.html'}")
    missed = [row for row in result.report["budget"] if not row["met"]]
    if missed:
        rows = "; ".join(
            f"{row['limit']}: allowed {row['allowed']:.6g}, measured {_number(row['measured'])}" for row in missed
        )
        raise BudgetError(f"the result is written, but does not keep to the budget: {rows}")


@app.command()
def compare(
    recipe: Annotated[Path, typer.Argument(help="The recipe; its first distill step gives the schedule.")],
    objectives: Annotated[
        str,
        typer.Option(
            "--objectives",
            help="Two or more, with commas: class names, with settings in braces (SoftTargets{temperature: 2}), sums "
            "(0.1*CrossEntropy+SoftTargets), files (loss.yaml), `recipe` for the recipe's own; NAME=... names one.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the comparison. The same command continues one that was cut off."),
    ],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds, from the recipe's on.")] = 3,
    against: Annotated[
        str | None, typer.Option("--against", help="The name that the others are compared with; the first when absent.")
    ] = None,
    jobs: Annotated[
        int,
        typer.Option("--jobs", min=1, help="How many students train at the same time, each in a process of its own."),
    ] = 1,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Train a recipe's student under several objectives; compare quality, calibration and cost on the validation split."""
    from limbeck.comparison import compare as run
    from limbeck.report.comparison import comparison_table, scales_table

    found = run(
        recipe, objectives, out, seeds=seeds, against=against, jobs=jobs, trust=tuple(trust or ()), progress=not as_json
    )
    if as_json:
        show(found)
        return
    say(comparison_table(found))
    say(scales_table(found))
    say(f"Page  {out / 'comparison.html'}")


def _number(value: Any) -> str:
    return "nothing" if value is None else f"{value:.6g}"


@app.command()
def measure(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder, or an .onnx file.")],
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="The task as YAML, e.g. '{class: ImageClassification, dataset: digits}'. "
            "An artifact made by `compress` knows its own.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime.")] = 2,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Batch of the latency measurement.")] = 1,
    split: Annotated[str, typer.Option("--split", help="Split that the quality is measured on.")] = "test",
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Measure size, speed, memory and quality of an artifact or an ONNX file."""
    from limbeck.inspection import measure_path, measurements_table

    found = measure_path(artifact, task, threads=threads, batch_size=batch_size, split=split, trust=tuple(trust or ()))
    show({name: m.to_json() for name, m in found.items()}) if as_json else say(measurements_table(found))


@app.command()
def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file (.onnx, .gguf) or folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, onnx_int8, onnx_int8_dynamic, onnx_weight_only, transformers, sentence_transformers, compressed_tensors, gptq "
            "or gguf.",
        ),
    ] = "onnx",
    settings: Annotated[
        str | None, typer.Option("--settings", help="Settings of the form as YAML, e.g. '{requantize: q8_0}'.")
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Export an artifact, check the export against the model and measure its quality again."""
    from limbeck.inspection import export_path

    done = export_path(artifact, out, to, settings, trust=tuple(trust or ()))
    show(done) if as_json else say(
        f"Wrote {done['file']} ({done['bytes']:,} bytes; largest difference {done['difference']:.2g})"
    )


@app.command()
def quantize(
    artifact: Annotated[Path, typer.Argument(help="An artifact folder, or a run of `limbeck compress`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the quantized artifact.")],
    bits: Annotated[float, typer.Option("--bits", help="8 to 2, 1.58 (-1, 0, 1) or 1 per weight.")] = 8,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="Calibrate on this task, as YAML; `own` for the one in the artifact's recipe. Absent: no data.",
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="By name, such as gptq; the default of the width when absent.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Draws the calibration examples.")] = None,
    embeddings: Annotated[
        int, typer.Option("--embeddings", help="Bits of tables of embeddings, 8 to 2; 32 leaves them in float.")
    ] = 8,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Quantize an artifact in one step, with the default method of its width."""
    from limbeck.inspection import quantize_path

    done = quantize_path(
        artifact, out, bits, task, method, seed, embeddings, trust=tuple(trust or ()), progress=not as_json
    )
    if as_json:
        show(done)
    else:
        say(
            f"Wrote {done['artifact']} ({done['bytes']:,} bytes of weights, {done['before']:,} before; {done['method']})"
        )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder or an artifact folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to write the page; report.html in the folder when absent.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report page again, and print its table."""
    from limbeck.inspection import report_of
    from limbeck.report import stage_table, write_page

    found, place = report_of(folder)
    target = out or place / "report.html"
    write_page(found, target)
    if as_json:
        show(found)
    else:
        say(stage_table(found))
        say(f"Report page  {target}")


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file to write; standard output when absent.")
    ] = None,
) -> None:
    """Print the JSON schema of recipes, for completion in editors."""
    from limbeck.files import write_json
    from limbeck.recipe import schema as made

    show(made()) if out is None else write_json(out, made())


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    from limbeck import __version__

    show({"limbeck": __version__}) if as_json else say(__version__)


def main() -> None:
    """Entry point: a user's mistake ends in one message and an exit code, never in a traceback."""
    try:
        app(standalone_mode=False, prog_name="limbeck")
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command continues where it stopped.\n")
        sys.exit(130)
    except LimbeckError as error:
        if os.environ.get("LIMBECK_DEBUG"):
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]Error[/red] ({type(error).__name__}):", end=" ")
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
            error.show()
            sys.exit(2)
        raise
