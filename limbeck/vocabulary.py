"""Names in recipes: what a class name, or one's own dotted path, stands for.

There is no registry: the public names (`__all__`) of a room are its vocabulary. A spec is a mapping with `class` and that
class's fields; `describe` turns an object back into its spec, so YAML and Python say the same thing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from limbeck.build import resolve
from limbeck.errors import LimbeckError, UsageError, did_you_mean

ROOMS: dict[str, tuple[str, ...]] = {
    "task": ("limbeck.tasks",),
    "model": ("limbeck.models",),
    "objective": ("limbeck.objectives", "limbeck.graphs"),
    "teacher": ("limbeck.teachers",),
    "transform": ("limbeck.pruning", "limbeck.factorization", "limbeck.conversion", "limbeck.quantization"),
    "scorer": ("limbeck.pruning",),
    "balance": ("limbeck.training",),
    "rounding": ("limbeck.quantization",),
}
# what tells the members of a role from the other public names of its rooms
_MARK = {
    "task": "evaluate",
    "objective": "reads",
    "teacher": "signals",
    "transform": "plan",
    "scorer": "score",
    "balance": "weigher",
    "rounding": "solve",
}


def names(role: str) -> dict[str, Any]:
    """The public names of a role's rooms."""
    found: dict[str, Any] = {}
    for room in ROOMS[role]:
        module = importlib.import_module(room)
        found |= {name: getattr(module, name) for name in module.__all__}
    mark = _MARK.get(role)
    return {
        name: value
        for name, value in found.items()
        if mark is None or (isinstance(value, type) and hasattr(value, mark))
    }


def find(name: str, role: str, where: str, trust: Iterable[str] = ()) -> Any:
    """The object a recipe names: a public name of the role's rooms, or "package.module:name" of a trusted package."""
    if ":" in name:
        package = name.partition(".")[0].partition(":")[0]
        if package == "limbeck" or package in {entry.partition(".")[0] for entry in trust}:
            return resolve(name, (*trust, "limbeck"))
        raise UsageError(f"{where}: {name!r} is code of your own. If you trust it, say so: --trust {package}")
    known = names(role)
    if name not in known:
        raise UsageError(f"{where}: no {role} is called {name!r}. {did_you_mean(name, known)}")
    return known[name]


def construct(spec: Any, role: str, where: str = "", trust: Iterable[str] = (), **given: Any) -> Any:
    """Build what a spec describes.

    spec: a name, or a mapping with `class` and fields; a field that is itself a mapping with `class` is built too.
    where: the recipe path for error messages. given: further keyword arguments that the recipe does not hold.
    Raises UsageError that names the path, the value, what is allowed and the near names.
    """
    where = where or role
    if isinstance(spec, str):
        spec = {"class": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class"), str):
        raise UsageError(f"{where}: expected a name or a mapping with 'class', got {spec!r}")
    made = find(spec["class"], role, where, trust)
    arguments = {
        key: _nested(value, f"{where}.{key}", role, trust)
        for key, value in spec.items()
        if key not in ("class", "weight")
    }
    check_fields(made, {**arguments, **given}, where)
    try:
        return made(**arguments, **given)
    except LimbeckError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from error


def _nested(value: Any, where: str, role: str, trust: Iterable[str]) -> Any:
    if isinstance(value, Mapping) and "class" in value:
        for candidate in dict.fromkeys((role, *ROOMS)):
            if ":" in str(value["class"]) or value["class"] in names(candidate):
                return construct(value, candidate, where, trust)
        known = [name for candidate in ROOMS for name in names(candidate)]
        raise UsageError(f"{where}: nothing is called {value['class']!r}. {did_you_mean(value['class'], known)}")
    if isinstance(value, list):
        return tuple(_nested(entry, f"{where}[{i}]", role, trust) for i, entry in enumerate(value))
    return value


def parameters(made: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a class or function."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in inspect.signature(made).parameters.items() if p.kind in kinds}


def accepts_anything(made: Any) -> bool:
    """Whether a class or function takes keyword arguments beyond those it names."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(made).parameters.values())


def check_fields(made: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Raise UsageError for a field that does not exist or one that is missing."""
    allowed, open_ended = parameters(made), accepts_anything(made)
    for name in arguments:
        if name not in allowed and not open_ended:
            raise UsageError(f"{where}: {made.__name__} has no field {name!r}. {did_you_mean(name, allowed)}")
    missing = [n for n, p in allowed.items() if p.default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise UsageError(f"{where}: {made.__name__} needs {', '.join(missing)}")


def objective(spec: Any, where: str = "objective", trust: Iterable[str] = ()) -> Any:
    """An objective from a spec, or the weighted sum of a list of them (each may carry `weight`)."""
    from limbeck.objectives.base import Objective

    if isinstance(spec, Objective):
        return spec
    entries = spec if isinstance(spec, (list, tuple)) else [spec]
    if not entries:
        raise UsageError(f"{where}: the list is empty; name at least one objective")
    total = None
    for index, entry in enumerate(entries):
        at = f"{where}[{index}]" if isinstance(spec, (list, tuple)) else where
        weight = entry.get("weight", 1.0) if isinstance(entry, Mapping) else 1.0
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise UsageError(f"{at}.weight: expected a number, got {weight!r}")
        term = construct(entry, "objective", at, trust)
        term = weight * term if weight != 1 else term
        total = term if total is None else total + term
    return total


def describe(value: Any) -> Any:
    """The spec of an object: plain JSON that `construct` turns back into it.

    Sums of objectives become lists. A module without lineage becomes {"module": its class name}: such a recipe documents, but
    cannot be replayed from the file alone.
    """
    from torch import nn

    from limbeck.build import lineage
    from limbeck.objectives.base import Objective, Sum

    if isinstance(value, Sum):
        return [{**describe(term), **({"weight": weight} if weight != 1 else {})} for term, weight in value.terms]
    if isinstance(value, nn.Module):
        past = lineage(value)
        return past.factory.to_json() if past else {"module": type(value).__name__}
    if hasattr(value, "describe"):
        return value.describe()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            if not field.init:
                continue
            current = getattr(value, field.name)
            default = (
                field.default_factory()
                if field.default is dataclasses.MISSING and callable(field.default_factory)
                else field.default
            )
            if default is dataclasses.MISSING or current != default:
                fields[field.name] = describe(current)
        return {"class": _public_name(type(value)), **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Objective):
        return {"class": _public_name(type(value))}
    return {"object": type(value).__name__}


def _public_name(made: type) -> str:
    for role in ROOMS:
        if names(role).get(made.__name__) is made:
            return made.__name__
    return f"{made.__module__}:{made.__qualname__}"
