"""Plans: plain JSON, versions, unknown kinds."""

import pytest
from torch import nn

from limbeck.build import Factory, build, lineage, with_lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import KINDS, Plan, apply


def test_round_trip_through_json():
    plan = Plan("mask", {"sparsity": 0.5, "paths": ["a", "b"]})
    assert Plan.from_json(plan.to_json()) == plan and Plan.from_json(plan.to_json()).digest == plan.digest


@pytest.mark.parametrize("decisions", [{"a": object()}, {"a": float("nan")}, {"a": {1, 2}}])
def test_only_plain_finite_json(decisions):
    with pytest.raises(TypeError, match="plain finite JSON"):
        Plan("mask", decisions)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"kind": "mask"},
        {"kind": "mask", "version": "1", "decisions": {}},
        {"kind": "mask", "version": 1, "decisions": []},
    ],
)
def test_nonsense_is_refused(value):
    with pytest.raises(ArtifactError):
        Plan.from_json(value)


def test_an_unknown_kind_lists_near_ones():
    with pytest.raises(ArtifactError, match="low_rank"):
        apply(nn.Linear(2, 2), Plan("lowrank"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_newer_version_is_refused(kind):
    with pytest.raises(ArtifactError, match="newer"):
        apply(nn.Linear(2, 2), Plan(kind, version=KINDS[kind][0] + 1))


def test_lineage_grows_with_every_plan():
    model = build(Factory("limbeck.models.resnet:resnet", {"depth": 8, "channels": 1}))
    plan = Plan("fold_batch_norm", {"pairs": [["conv1", "bn1"]]})
    changed = apply(model, plan)
    assert lineage(changed).plans == (plan,) and lineage(changed).factory.arguments["depth"] == 8


def test_a_model_without_lineage_stays_without():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    assert lineage(apply(model.eval(), Plan("fold_batch_norm", {"pairs": [["0", "1"]]}))) is None


@pytest.mark.parametrize(
    "target",
    [
        "os:remove",
        "limbeck.models.resnet:torch",
        "limbeck.files:write_bytes",
        "nocolon",
        "limbeck.models.resnet:_Block",
    ],
)
def test_factories_build_models_of_limbeck_and_nothing_else(target):
    with pytest.raises((ArtifactError, UsageError)):
        build(Factory(target, {}))


def test_trusted_code_may_build():
    model = build(Factory("torch.nn.modules.linear:Linear", {"in_features": 2, "out_features": 3}), trust=["torch"])
    assert isinstance(model, nn.Linear) and lineage(with_lineage(model, Factory("a:b"))).factory.target == "a:b"
