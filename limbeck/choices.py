"""Objectives named on a command line.

recipe                                              the recipe's own
SoftTargets                                         a class of the room with its defaults
SoftTargets{temperature: 2, weight: 0.5}            with settings, as JSON or YAML in braces
0.1*CrossEntropy+0.9*SoftTargets{temperature: 4}    a weighted sum
losses/kd.yaml                                      a file that holds what a recipe's `objective` field may hold
hints=CrossEntropy+losses/hint.yaml                 with a name of its own; otherwise its text (or the file's) is its name
objectives.yaml                                     alone: a file that holds several, as {name: what an `objective` field may hold}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from limbeck import vocabulary
from limbeck.errors import UsageError
from limbeck.objectives.base import Objective

OWN = "recipe"
FILES = (".yaml", ".yml", ".json")
_WEIGHED = re.compile(r"^\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*\*(.*)$", re.DOTALL)
_CLASSLESS = re.compile(r"^[^={}*+]+\.(yaml|yml|json)$")
_CLASS = re.compile(r"^([\w.:]+)\s*(\{.*\})?$", re.DOTALL)


def split_outside(text: str, at: str) -> list[str]:
    """Cut text at a character, but not inside brackets or quotes. Raises UsageError for brackets that do not close."""
    parts, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == at and depth == 0:
            parts.append(text[start:place])
            start = place + 1
        if depth < 0:
            break
    if depth or quote:
        raise UsageError(f"objectives: the brackets or quotes of {text!r} do not close")
    return [part.strip() for part in (*parts, text[start:])]


def named_objectives(given: Any, own: Objective, trust: Iterable[str] = ()) -> dict[str, Objective]:
    """Objectives by name, of a text as above, of {name: objective, spec or text}, or of a list of objectives, specs and texts.

    own: what "recipe" stands for. Raises UsageError for what cannot be read, and for two of one name.
    """
    if isinstance(given, str):
        given = split_outside(given, ",")
        several = _content(given[0]) if len(given) == 1 and _CLASSLESS.match(given[0]) else None
        if isinstance(several, Mapping) and "class" not in several:
            given = several
    if not isinstance(given, Mapping):
        rows = [_read(entry, own, trust) for entry in given]
    else:
        rows = [(name, _read(entry, own, trust)[1]) for name, entry in given.items()]
    made: dict[str, Objective] = {}
    for name, objective in rows:
        if name in made:
            raise UsageError(f"objectives: two are called {name!r}; give them names of their own: a={name},b={name}")
        made[name] = objective
    return made


def _read(entry: Any, own: Objective, trust: Iterable[str]) -> tuple[str, Objective]:
    if isinstance(entry, Objective):
        return " + ".join(term.name for term, _ in getattr(entry, "terms", ((entry, 1.0),))), entry
    if not isinstance(entry, str):
        made = vocabulary.objective(entry, "objectives", trust)
        return _read(made, own, trust)
    if not entry:
        raise UsageError("objectives: a name is missing between two commas")
    named, name, text, total = "=" in entry.partition("{")[0], entry, entry, None
    if named:
        name, _, text = (part.strip() for part in entry.partition("="))
    for term in split_outside(text, "+"):
        made = _term(term, own, trust)
        total = made if total is None else total + made
    if not named and text.endswith(FILES) and "+" not in text:
        name = Path(text).stem
    return name, total


def _term(text: str, own: Objective, trust: Iterable[str]) -> Objective:
    weighed = _WEIGHED.match(text)
    if weighed:
        return float(weighed[1]) * _term(weighed[2].strip(), own, trust)
    if text == OWN:
        return own
    if text.endswith(FILES):
        return vocabulary.objective(_content(text), text, trust)
    found = _CLASS.match(text)
    if not found:
        raise UsageError(
            f"objectives: {text!r} cannot be read: a class such as SoftTargets, a class with settings such as "
            f"SoftTargets{{temperature: 2}}, a file, or {OWN!r}"
        )
    settings = _parsed(found[2], text) if found[2] else {}
    return vocabulary.objective([{"class": found[1], **settings}], f"objectives: {text}", trust)


def _content(path: str) -> Any:
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"cannot read the objective {path}: {error.strerror or error}") from None
    return _parsed(text, path)


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"objectives: {where}: the settings are not JSON or YAML: {error}") from None
