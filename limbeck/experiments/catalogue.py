"""The catalogue: the field's published systems, and which of them are here. Reads JSON and file names only, so that it is quick."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path
from typing import Any

from limbeck.errors import ArtifactError, UsageError, did_you_mean

PACKAGE = Path(__file__).parent.parent


@functools.cache
def catalogue() -> tuple[dict[str, Any], ...]:
    """All rows in order of id: {"id", "name", "title", "family", "claim"}. `name` is the file's name in limbeck/papers when it is there."""
    rows = json.loads((Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(sorted(rows, key=lambda row: row["id"]))


def families() -> tuple[str, ...]:
    """The families' names."""
    return tuple(sorted({row["family"] for row in catalogue()}))


def row_of(name: str) -> dict[str, Any]:
    """The row with this name, or with this number as id. Raises UsageError with the near names when there is none."""
    for row in catalogue():
        if name == row["name"] or name == str(row["id"]):
            return row
    raise UsageError(f"no paper {name!r}. {did_you_mean(name, [row['name'] for row in catalogue()])}")


def paper_files() -> dict[str, Path]:
    """The papers that are here: name to file."""
    return {path.stem: path for path in sorted((PACKAGE / "papers").glob("*.py")) if path.stem != "__init__"}


def idea(name: str) -> str:
    """The docstring of a paper's file, read without importing it."""
    files = paper_files()
    if name not in files:
        raise UsageError(f"no file for the paper {name!r} yet")
    return ast.get_docstring(ast.parse(files[name].read_text(encoding="utf-8"))) or ""


def ledger_folder() -> Path:
    """Where results are written unless told otherwise: `ledger/` of a source checkout, else of the current folder."""
    checkout = PACKAGE.parent
    return checkout / "ledger" if (checkout / "pyproject.toml").exists() else Path("ledger")


def entry(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The ledger's entry of a paper: from `folder`, else the one that came with Limbeck; None when it was never run.

    Raises ArtifactError for a file that is not an entry.
    """
    for place in (folder or ledger_folder(), PACKAGE / "ledger"):
        path = place / f"{name}.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                if found["format"] != 1 or found["name"] != name:
                    raise ValueError(f"format {found['format']!r}, name {found['name']!r}")
                return found
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(
                    f"{path} is not a ledger entry ({error}). Run `limbeck papers run {name}`"
                ) from error
    return None


def listing(family: str | None = None, folder: Path | None = None) -> list[dict[str, Any]]:
    """Every row with its verdict: {"id", "name", "title", "family", "verdict"}; the verdict is None where nothing was run.

    Raises UsageError for a family that does not exist.
    """
    if family is not None and family not in families():
        raise UsageError(f"family={family!r}: not one of the catalogue's. {did_you_mean(family, families())}")
    rows = []
    for row in catalogue():
        if family is None or row["family"] == family:
            found = entry(row["name"], folder)
            rows.append(
                {
                    **{key: row[key] for key in ("id", "name", "title", "family")},
                    "verdict": found["verdict"] if found else None,
                }
            )
    return rows
