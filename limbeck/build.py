"""Factories and lineage: how a model can be built again without its weights and without pickle.

A Factory is JSON: a dotted path `package.module:callable` and its arguments. Only code of `limbeck.models` is imported
by itself (its `pretrained` module builds transformers and sentence-transformers architectures from their configs);
anything else only when the caller names its package as trusted. A model that Limbeck built or loaded carries its
Lineage: the factory and every plan applied since.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from limbeck.errors import ArtifactError, UsageError, did_you_mean
from limbeck.files import canonical_json, digest
from limbeck.plan import Plan

SAFE_MODULES = ("limbeck.models",)
_ATTRIBUTE = "_limbeck_lineage"
_FOLLOW = ContextVar("weights_follow", default=False)


@dataclass(frozen=True)
class Factory:
    """`target` is "package.module:callable"; `arguments` are its keyword arguments, plain JSON (kept as JSON has them)."""

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            text = canonical_json(self.arguments)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the arguments of factory {self.target!r} must be plain finite JSON: {error}") from error
        object.__setattr__(self, "arguments", json.loads(text))

    def to_json(self) -> dict[str, Any]:
        return {"target": self.target, "arguments": self.arguments}

    @staticmethod
    def from_json(value: Any) -> Factory:
        if (
            not isinstance(value, dict)
            or set(value) != {"target", "arguments"}
            or not isinstance(value["target"], str)
            or not isinstance(value["arguments"], dict)
        ):
            raise ArtifactError("a factory must have exactly the keys target (text) and arguments (an object)")
        return Factory(value["target"], value["arguments"])

    @property
    def digest(self) -> str:
        return digest(self.to_json())


@dataclass(frozen=True)
class Lineage:
    """What turns nothing into this model's architecture: a factory, then plans in order."""

    factory: Factory
    plans: tuple[Plan, ...] = ()


@contextmanager
def weights_to_follow() -> Iterator[None]:
    """Inside, models are built whose weights are put in afterwards: what plans would compute from them may be left out."""
    before = _FOLLOW.set(True)
    try:
        yield
    finally:
        _FOLLOW.reset(before)


def weights_follow() -> bool:
    """Whether the weights of what is being built are put in afterwards."""
    return _FOLLOW.get()


def lineage(model: nn.Module) -> Lineage | None:
    """The lineage a model carries, or None for a module that Limbeck did not build."""
    return getattr(model, _ATTRIBUTE, None)


def with_lineage(model: nn.Module, factory: Factory, plans: Iterable[Plan] = ()) -> nn.Module:
    """Mark a model as built by `factory` and changed by `plans`; returns it."""
    object.__setattr__(model, _ATTRIBUTE, Lineage(factory, tuple(plans)))
    return model


def extend_lineage(changed: nn.Module, before: nn.Module, plan: Plan) -> nn.Module:
    """Carry the lineage of `before` over to `changed` with one plan more."""
    past = lineage(before)
    return with_lineage(changed, past.factory, (*past.plans, plan)) if past else changed


def _inside(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def resolve(target: str, trust: Iterable[str] = ()) -> Any:
    """The object behind "package.module:name", imported only when its module is safe or trusted by the caller."""
    module, colon, name = target.partition(":")
    if not colon or not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UsageError(f"{target!r} is not of the form 'package.module:name'")
    known = (*SAFE_MODULES, *((trust,) if isinstance(trust, str) else trust))
    if not _inside(module, known):
        raise ArtifactError(
            f"the model is built by {target!r}, code outside limbeck.models. "
            f"If you trust it, name its package: trust=[{module.split('.')[0]!r}]"
        )
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"cannot import {module!r} for {target!r}: {error}") from error
    if not hasattr(found, name) or name.startswith("_"):
        raise UsageError(
            f"{module!r} has no public {name!r}. {did_you_mean(name, [n for n in dir(found) if n[0] != '_'])}"
        )
    made = getattr(found, name)
    origin = getattr(made, "__module__", module)
    if not callable(made):
        raise UsageError(f"{target!r} is a {type(made).__name__}, not something that builds a model")
    if not isinstance(origin, str) or not _inside(origin, known):
        raise ArtifactError(f"{target!r} is only imported there from {origin!r}; name the module that defines it")
    return made


def build(factory: Factory, plans: Iterable[Plan] = (), trust: Iterable[str] = ()) -> nn.Module:
    """Build the empty architecture and replay its plans; the weights are whatever the factory initializes."""
    from limbeck.plan import apply

    make = resolve(factory.target, trust)
    try:
        model = make(**factory.arguments)
    except TypeError as error:
        raise UsageError(f"{factory.target}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{factory.target} returned {type(model).__name__}, not a torch module")
    model = with_lineage(model, factory)
    for plan in plans:
        model = apply(model, plan)
    return model
