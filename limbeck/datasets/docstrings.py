"""Technical English that every machine has: the prose of the docstrings of installed Python packages.

Files are read and parsed, never imported. Code, tables, formulas and markup are left out: what stays are paragraphs of sentences.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

from limbeck.errors import DataError

PREFIX = "docstrings:"
LEAST_CHARACTERS = 50  # shorter paragraphs are headings and types
PROSE = 0.85  # least share of letters and spaces

_ROLE = re.compile(r":\w+:`~?([^`<]*)(?:<[^>]*>)?`")


def prose(docstring: str) -> str:
    """The paragraphs of a docstring that are prose, without markup, joined by spaces; "" where there are none."""
    kept = []
    for part in re.split(r"\n\s*\n", docstring):
        part = re.sub(r"\s+", " ", part).strip()
        if len(part) < LEAST_CHARACTERS or ">>>" in part or "--" in part or part.count("=") > 3 or part.count("`") > 8:
            continue
        part = _ROLE.sub(r"\1", part).replace("`", "")
        letters = sum(character.isalpha() or character == " " for character in part)
        if letters >= PROSE * len(part) and part.endswith((".", ":", "!", "?")):
            kept.append(part)
    return " ".join(kept)


def docstrings(package: str) -> list[str]:
    """The prose of every module, class and function of an installed package, each text once, files in order; tests left out.

    Raises DataError where the package is not installed.
    """
    try:
        found = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"texts: {PREFIX}{package}: no Python package {package!r} is installed. Install it, or leave it out"
        )
    texts: dict[str, None] = {}
    root = Path(next(iter(found.submodule_search_locations)))
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.relative_to(root).parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):  # templates, and files written for other versions of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = prose(ast.get_docstring(node) or "")
                if text:
                    texts.setdefault(text)
    return list(texts)
