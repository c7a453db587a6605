"""Structured pruning: that cutting equals masking, what stays, and that a plan replays on nothing."""

import copy
import json

import pytest
import torch
from masking import masked_outputs, outputs
from pruning_cases import IMAGES, MODELS, TOKENS, build, restless
from torch import nn

from limbeck.build import lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.measure.flops import count_flops
from limbeck.models import resnet
from limbeck.plan import Plan, apply
from limbeck.pruning import Magnitude, Prune, Random, Taylor
from limbeck.pruning.selection import parameters_after, rounded, select
from limbeck.pruning.tracing import Group
from limbeck.signals import call, first_tensor


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_cut_equals_masked_and_replays_on_an_empty_model(name):
    model, task = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    scope = "layer" if name == "mixed" else "global"  # there every group has to lose something
    plan = Prune(Taylor(batches=2, batch_size=4), keep=0.5, round_to=4, scope=scope).plan(model, task)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted and not model.training
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.requires_grad_(True)

    expected, size = masked_outputs(model, plan, task), parameters(model)
    assert (expected - outputs(model, task)).abs().max() > 1e-3, "masking has to matter, or this shows nothing"
    pruned = apply(model, plan)
    found = outputs(pruned, task)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert parameters(pruned) < 0.8 * size
    assert parameters(pruned) == parameters_after(build(name)[0], plan.decisions["kept"])

    replayed = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    fresh = apply(MODELS[name][0](), replayed).eval()
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(outputs(fresh, task), found)

    first_tensor(call(pruned.train(), task.example(4))).square().sum().backward()
    missing = [k for k, p in pruned.named_parameters() if p.grad is None and "pooler" not in k]
    assert not missing


@pytest.mark.parametrize("name", ["resnet", "mixed", "encoder", "llama"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_keeping_everything_is_the_identity(name, scope):
    model, task = build(name)
    expected = outputs(model, task)
    plan = Prune(Magnitude(), keep=1.0, scope=scope, round_to=7).plan(model, task)
    assert plan.decisions["kept"] == {} and plan.decisions["attributes"] == {}
    assert torch.equal(outputs(apply(model, plan), task), expected)


def test_lineage_gains_the_plan():
    model, task = build("resnet")
    plan = Prune(Magnitude(), keep=0.5).plan(model, task)
    assert [p.digest for p in lineage(apply(model, plan)).plans] == [plan.digest]


@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_ignore_and_kinds(name):
    model, task = build(name)
    if name == "resnet":
        plan = Prune(Magnitude(), ignore="layer1", round_to=1).plan(model, task)
        assert "is ignored" in plan.decisions["left_alone"]["layer1.0.conv1"]
        assert "out" not in plan.decisions["kept"].get("conv1", {})  # the stream that layer1 writes to
        assert len(plan.decisions["kept"]["layer2.0.conv1"]["out"]) < 32
    else:
        plan = Prune(Magnitude(), heads=False, round_to=1).plan(model, task)
        assert {g["kind"] for g in plan.decisions["groups"]} == {"neurons"}
        plan = Prune(Magnitude(), neurons=False).plan(model, task)
        assert {g["kind"] for g in plan.decisions["groups"]} == {"heads"}
        assert plan.decisions["left_alone"]["blocks.0.feed_forward.up"] == "pruning of neurons is off"


@pytest.mark.parametrize("target", ["keep_parameters", "keep_flops"])
@pytest.mark.parametrize("name", ["resnet", "encoder"])
def test_targets_are_reached_and_not_overshot(name, target):
    model, task = build(name)
    batch = task.example(1)
    size, work = parameters(model), count_flops(model, batch)
    plan = Prune(Random(), round_to=2, **{target: 0.6}).plan(model, task)
    pruned = apply(model, plan)
    share = parameters(pruned) / size if target == "keep_parameters" else count_flops(pruned, batch) / work
    assert 0.48 < share <= 0.6
    assert 0 < plan.decisions["settings"]["keep"] < 1


def test_a_target_that_cannot_be_reached_is_refused():
    model, task = build("encoder")
    with pytest.raises(UsageError, match=r"keep_parameters=0.01 cannot be reached.*leaves 0\.\d+"):
        Prune(Magnitude(), keep_parameters=0.01).plan(model, task)


def group(name, items, kind="channels"):
    return Group(name, kind, items, ())


def test_selection_is_what_a_sort_would_give():
    groups = [group("a", 4), group("b", 4), group("h", 2, "heads")]
    scores = {
        "a": torch.tensor([9.0, 1.0, 8.0, 7.0]),
        "b": torch.tensor([2.0, 6.0, 0.5, 0.1]),
        "h": torch.tensor([0.1, 0.2]),
    }
    kept = select(groups, scores, 0.5, "global", 1, 0.0, comparable=True)
    assert kept == {"a": [0, 2, 3], "b": [1], "h": [1]}
    kept = select(groups, scores, 0.5, "layer", 1, 0.0, comparable=True)
    assert kept == {"a": [0, 2], "b": [0, 1], "h": [1]}
    # divided by their means, 6.25 and 3.275: a = 1.44 .16 1.28 1.12, b = .61 1.83 1.53 .03
    scores["b"] = torch.tensor([2.0, 6.0, 5.0, 0.1])
    kept = select(groups, scores, 0.5, "global", 1, 0.0, comparable=False)
    assert kept == {"a": [0, 2], "b": [1, 2], "h": [1]}
    assert select(groups, scores, 0.5, "global", 1, 0.0, comparable=True) == {"a": [0, 2, 3], "b": [1], "h": [1]}
    # the unit of a group's scores changes nothing when they are normalized
    larger = scores | {"b": scores["b"] * 10}
    assert select(groups, larger, 0.5, "global", 1, 0.0, comparable=False) == kept
    # equal scores are cut like any others
    even = {name: torch.zeros_like(value) for name, value in scores.items()}
    assert sum(map(len, select(groups, even, 0.5, "global", 1, 0.0, comparable=True).values())) == 5
    # a group never loses more than `minimum` says
    assert select(groups, scores, 0.5, "global", 1, 0.5, comparable=True)["b"] == [1, 2]


@pytest.mark.parametrize(
    ("count", "items", "step", "minimum", "expected"),
    [(9, 32, 8, 0, 8), (12, 32, 8, 0, 16), (1, 32, 8, 0, 8), (3, 32, 8, 0.5, 16), (6, 6, 8, 0, 6), (3, 6, 8, 0, 6),
     (30, 32, 1, 0, 30), (17.6, 18, 8, 0, 16), (18, 18, 8, 0, 18)],
)  # fmt: skip
def test_rounding(count, items, step, minimum, expected):
    assert rounded(count, group("a", items), step, minimum) == expected
    assert rounded(3, group("h", 12, "heads"), 8, 0.0) == 3


@pytest.mark.parametrize("scorer", [Magnitude(1), Magnitude(2), Taylor(batches=1, batch_size=8)])
def test_dead_channels_go_first_and_nothing_changes(scorer):
    model = restless(resnet(8), 3)
    dead = list(range(0, 32, 2))
    with torch.no_grad():
        for tensor in (model.layer2[0].conv1.weight, model.layer2[0].bn1.weight, model.layer2[0].bn1.bias):
            tensor[dead] = 0
        model.layer2[0].conv2.weight[:, dead] = 0
    expected = outputs(model, IMAGES)
    others = tuple(p for p, m in model.named_modules() if isinstance(m, nn.Conv2d) and p != "layer2.0.conv1")
    plan = Prune(scorer, keep=0.5, round_to=1, ignore=others).plan(model, IMAGES)
    assert plan.decisions["kept"]["layer2.0.conv1"]["out"] == list(range(1, 32, 2))
    torch.testing.assert_close(outputs(apply(model, plan), IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_plan_and_keeps_the_generator():
    model, task = build("encoder")
    torch.manual_seed(5)
    first = Prune(Taylor(batches=2, batch_size=4)).plan(model, task)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert Prune(Taylor(batches=2, batch_size=4)).plan(copy.deepcopy(model), task) == first


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "half", True, None.__class__])
@pytest.mark.parametrize("field", ["keep", "keep_parameters", "keep_flops"])
def test_fractions_outside_the_interval_are_refused(field, value):
    with pytest.raises(UsageError, match=rf"{field} must lie in \(0, 1\]"):
        Prune(**{field: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0.5, "keep_flops": 0.5}, "give one of"),
        ({"scope": "all"}, "scope must be"),
        ({"round_to": 0}, "round_to"),
        ({"minimum": 2}, "minimum"),
        ({"heads": False, "channels": False, "neurons": False}, "nothing to prune"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        Prune(**settings)


def test_other_mistakes_are_named():
    model, task = build("resnet")
    with pytest.raises(UsageError, match="Did you mean 'layer1'"):
        Prune(Magnitude(), ignore=("layr1",)).plan(model, task)
    with pytest.raises(UsageError, match="pass the task"):
        Prune(Magnitude()).plan(model)
    plan = Prune(Magnitude(), keep=0.5).plan(model, task)
    with pytest.raises(ArtifactError, match="does not have"):
        apply(build("encoder")[0], plan)
    with pytest.raises(ArtifactError, match="that it does not have"):
        apply(resnet(8, width=4), plan)


def test_half_precision_models_are_planned_and_cut():
    model, task = build("encoder")
    model = model.to(torch.bfloat16)
    plan = Prune(Magnitude(), keep=0.5).plan(model, task)
    pruned = apply(model, plan)
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
    assert outputs(pruned, TOKENS).isfinite().all()
