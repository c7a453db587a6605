"""Factories: what may be imported, what may not, and what lineage records."""

from __future__ import annotations

import pytest
from torch import nn

from limbeck.build import Factory, Lineage, build, extend_lineage, lineage, resolve, with_lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan

HERE = "test_build"
NOTHING_TO_CALL = 3


def make(width: int = 2) -> nn.Module:
    return nn.Linear(width, width)


def make_text() -> str:
    return "no module"


def _hidden() -> nn.Module:
    return make()


def test_build_runs_the_factory_and_remembers_it():
    model = build(Factory(f"{HERE}:make", {"width": 3}), trust=[HERE])
    assert model.weight.shape == (3, 3)
    assert lineage(model) == Lineage(Factory(f"{HERE}:make", {"width": 3}), ())
    assert lineage(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("trust", [(), ("test_buil",), ("test_build2",), ("torch",)])
def test_only_named_packages_are_trusted(trust):
    with pytest.raises(ArtifactError, match=r"trust=\['test_build'\]"):
        build(Factory(f"{HERE}:make"), trust=trust)


@pytest.mark.parametrize("target", ["os:system", "builtins:eval", "limbeck.artifact:save", "limbeck.modelsx:f"])
def test_code_outside_the_models_is_refused_before_it_is_imported(target):
    with pytest.raises(ArtifactError, match=r"outside limbeck\.models"):
        resolve(target)


@pytest.mark.parametrize(
    "target", ["os", "os:", ":f", "limbeck.models..x:f", "limbeck.models.a/b:f", "limbeck.models:a.b"]
)
def test_a_target_is_a_dotted_path(target):
    with pytest.raises(UsageError, match="not of the form"):
        resolve(target)


def test_names_that_are_private_imported_missing_or_no_function():
    with pytest.raises(UsageError, match="no public '_hidden'"):
        resolve(f"{HERE}:_hidden", [HERE])
    with pytest.raises(UsageError, match="Did you mean 'make'"):
        resolve(f"{HERE}:maker", HERE)
    with pytest.raises(ArtifactError, match=r"imported there from 'limbeck.build'"):
        resolve(f"{HERE}:build", [HERE])
    with pytest.raises(UsageError, match="int, not something that builds"):
        resolve(f"{HERE}:NOTHING_TO_CALL", [HERE])
    with pytest.raises(UsageError, match="cannot import"):
        resolve(f"{HERE}.absent:make", [HERE])


def test_what_a_factory_must_give_and_take():
    with pytest.raises(UsageError, match="returned str, not a torch module"):
        build(Factory(f"{HERE}:make_text"), trust=[HERE])
    with pytest.raises(UsageError, match="unexpected keyword argument 'depth'"):
        build(Factory(f"{HERE}:make", {"depth": 3}), trust=[HERE])
    with pytest.raises(UsageError, match="plain finite JSON"):
        Factory(f"{HERE}:make", {"width": object()})
    assert Factory("a:b", {"sizes": (1, 2)}) == Factory.from_json(Factory("a:b", {"sizes": [1, 2]}).to_json())
    for wrong in (None, {"target": "a:b"}, {"target": 3, "arguments": {}}, {"target": "a:b", "arguments": []}):
        with pytest.raises(ArtifactError, match="factory must have"):
            Factory.from_json(wrong)


def test_lineage_grows_with_plans_and_follows_a_new_root():
    model = with_lineage(nn.Linear(1, 1), Factory("a:b"))
    root = extend_lineage(nn.Sequential(model), model, Plan("mask", {"x": 1}))
    assert lineage(root) == Lineage(Factory("a:b"), (Plan("mask", {"x": 1}),))
    assert lineage(extend_lineage(nn.Linear(1, 1), nn.Linear(1, 1), Plan("mask"))) is None
