"""Errors a user can act on.

Each carries a complete message: what was given, what is allowed, what to do. The command line prints it without a
traceback and leaves with the class's `exit_code`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LimbeckError(Exception):
    """Any failure whose message is meant for the user."""

    exit_code = 1


class UsageError(LimbeckError):
    """A recipe, an argument or a name that cannot be right."""

    exit_code = 2


class DataError(LimbeckError):
    """Data that is missing, empty or of the wrong form."""

    exit_code = 3


class ArtifactError(LimbeckError):
    """A folder or file that is damaged, tampered with, incomplete, untrusted or from a newer version."""

    exit_code = 4


class TrainingError(LimbeckError):
    """Training that cannot go on: a loss that is not finite, or that diverged."""

    exit_code = 5


class ExportError(LimbeckError):
    """An export that failed or lost quality on the way."""

    exit_code = 6


class BudgetError(LimbeckError):
    """The measured result does not keep to the budget."""

    exit_code = 7


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A sentence that lists the options nearest to `name`, or all of them when none is near."""
    options = sorted(str(option) for option in options)
    near = difflib.get_close_matches(str(name), options, n=3, cutoff=0.5)
    if near:
        return "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "Known: " + ", ".join(options) + "." if options else "None are known."


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{module!r} is needed for this and is not installed ({error}). Run: pip install 'limbeck[{extra}]'"
        ) from error
