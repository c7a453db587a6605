"""The source files that decide what a module computes, found without running it: its own and, from name to name, those it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType

# the machinery around an arm, which reads no data and trains nothing, and words: changing them changes no number
OUTSIDE = (
    "limbeck.errors",
    "limbeck.progress",
    "limbeck.report",
    "limbeck.experiments",
    "limbeck.cli",
    "limbeck.papers",
)
INSIDE = ("limbeck.experiments.run", "limbeck.experiments.store")


def sources(module: ModuleType, own: tuple[str, ...] = ("limbeck",)) -> dict[str, str]:
    """Module name to SHA-256 of its source, for the module and everything of the packages `own` that it imports, however far.

    `from room import Name` leads to the file that defines Name, not to the room's list of names, so that a new neighbour there
    changes nothing. Imports inside functions count too.
    """
    own = (*own, module.__name__.partition(".")[0])
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        now = waiting.pop()
        if now.__name__ in found or not _source_file(now):
            continue
        text = Path(now.__file__).read_bytes()
        found[now.__name__] = hashlib.sha256(text).hexdigest()
        for other in _imported(now, ast.parse(text), own):
            if other is module or not _outside(other.__name__):
                waiting.append(other)
    return dict(sorted(found.items()))


def _source_file(module: ModuleType) -> bool:
    return str(getattr(module, "__file__", None) or "").endswith(".py")


def _outside(name: str) -> bool:
    return name not in INSIDE and any(name == prefix or name.startswith(prefix + ".") for prefix in OUTSIDE)


def _imported(module: ModuleType, tree: ast.AST, own: tuple[str, ...]) -> list[ModuleType]:
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out += [_load(alias.name) for alias in node.names if alias.name.partition(".")[0] in own]
        elif isinstance(node, ast.ImportFrom):
            package = module.__name__ if _is_package(module) else module.__name__.rpartition(".")[0]
            name = (
                importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if node.level
                else node.module
            )
            if name.partition(".")[0] in own:
                out += [_home(name, alias.name, own) for alias in node.names]
    return [found for found in out if found is not None]


def _is_package(module: ModuleType) -> bool:
    return hasattr(module, "__path__")


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None  # an optional extra that is not installed


def _home(module: str, name: str, own: tuple[str, ...]) -> ModuleType | None:
    """The module where what `from module import name` gives was written."""
    loaded = _load(module)
    if loaded is None:
        return None
    value = getattr(loaded, name, None)
    if value is None:
        return _load(f"{module}.{name}") or loaded
    if isinstance(value, ModuleType):
        return value
    home = inspect.getmodule(value)
    return home if home is not None and home.__name__.partition(".")[0] in own else loaded
