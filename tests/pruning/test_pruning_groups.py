"""Which channels and heads belong together, found by tracing, and what is left alone."""

import pytest
import torch
from masking import masked_outputs, outputs
from pruning_cases import IMAGES, RandomTask, build, restless
from torch import nn
from torch.nn import functional as F

from limbeck.models import resnet
from limbeck.plan import apply
from limbeck.pruning import Magnitude, Prune, Random
from limbeck.pruning.groups import find_groups


def producers(groups):
    return {g.name: {m.path for m in g.members if m.axis == "out"} for g in groups}


def readers(groups):
    return {g.name: {m.path for m in g.members if m.axis == "in"} for g in groups}


def test_groups_of_a_resnet_follow_the_residual_stream():
    groups, left = find_groups(resnet(14), IMAGES.example(2))
    (name,) = {"layer2.0.shortcut.0", "layer2.0.conv2"} & set(producers(groups))
    assert producers(groups)[name] == {
        "layer2.0.conv2", "layer2.0.bn2", "layer2.0.shortcut.0", "layer2.0.shortcut.1", "layer2.1.conv2", "layer2.1.bn2",
    }  # fmt: skip
    assert readers(groups)[name] == {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.shortcut.0"}
    assert producers(groups)["layer1.1.conv1"] == {"layer1.1.conv1", "layer1.1.bn1"}
    assert readers(groups)["layer1.1.conv1"] == {"layer1.1.conv2"}
    assert set(left) == {"fc"}


def test_groups_of_concatenation_depthwise_and_flatten():
    groups = {g.name: g for g in find_groups(build("mixed")[0], IMAGES.example(2))[0]}
    index = {name: {(m.path, m.axis): m.index for m in g.members} for name, g in groups.items()}
    assert index["right"]["narrow", "in"].flatten().tolist() == list(range(16, 24))
    assert index["right"]["joint", "out"].flatten().tolist() == list(range(16, 24))
    assert index["first"]["depthwise", "out"].flatten().tolist() == list(range(16))
    assert ("depthwise", "in") not in index["first"]
    assert index["narrow"]["hidden", "in"][3].tolist() == list(range(48, 64))


def test_heads_of_grouped_queries_go_with_their_keys():
    model, task = build("llama")
    plan = Prune(Random(), keep=0.5, neurons=False).plan(model, task)
    kept = plan.decisions["kept"]
    for layer in range(3):
        path = f"model.layers.{layer}.self_attn."
        if path + "k_proj" not in kept:
            continue
        keys = kept[path + "k_proj"]["out"]
        head = keys[0] // 8
        assert keys == list(range(head * 8, head * 8 + 8)) == kept[path + "v_proj"]["out"]
        assert kept[path + "q_proj"]["out"] == list(range(head * 16, head * 16 + 16)) == kept[path + "o_proj"]["in"]
    assert sum(len(v["out"]) for k, v in kept.items() if k.endswith("k_proj")) + 16 * (
        3 - sum(k.endswith("k_proj") for k in kept)
    ) == pytest.approx(24, abs=8)


def test_a_fused_projection_loses_the_same_head_of_queries_keys_and_values():
    model, task = build("gpt2")
    plan = Prune(Magnitude(), keep=0.5, scope="layer", neurons=False).plan(model, task)
    kept = plan.decisions["kept"]["transformer.h.1.attn.c_attn"]["out"]
    query = plan.decisions["kept"]["transformer.h.1.attn.c_proj"]["in"]
    assert kept == query + [32 + i for i in query] + [64 + i for i in query]
    assert plan.decisions["attributes"]["transformer.h.1.attn"] == {"num_heads": 2, "split_size": 16}


class Flipped(nn.Module):
    """Channels change places between producer and reader. The tracer takes that for element-wise; sizes fit all the same."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.c, self.fc = nn.Conv2d(16, 24, 1), nn.Linear(24, 4)

    def forward(self, pixel_values):
        x = F.relu(self.a(pixel_values)).flip(1)
        return self.fc(F.relu(self.c(F.relu(self.b(x)))).mean((2, 3)))


def test_a_group_that_the_tracer_gets_wrong_is_left_alone():
    model = restless(Flipped(), 0)
    expected_left = find_groups(model, IMAGES.example(2))[1]
    assert expected_left["a"] == "cutting it does not equal masking it"
    plan = Prune(Magnitude(), keep=0.5, round_to=1).plan(model, IMAGES)
    assert "a" in plan.decisions["left_alone"] and "out" not in plan.decisions["kept"].get("a", {})
    assert len(plan.decisions["kept"]["b"]["out"]) < 16
    expected = masked_outputs(model, plan, IMAGES)
    torch.testing.assert_close(outputs(apply(model, plan), IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_tracing_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr("limbeck.pruning.groups.find_attention", lambda model: [])
    model, task = build("llama")
    groups, left = find_groups(model, task.example(1))
    assert {g.kind for g in groups} == {"neurons"} and len(groups) == 3
    assert "does not end" in left["model.layers.0.self_attn.q_proj"]


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.b(torch.from_numpy(self.a(x).detach().numpy()))


def test_an_untraceable_model_is_left_as_it_is_and_says_so():
    task = RandomTask(lambda n, g: {"x": torch.randn(n, 8, generator=g)})
    plan = Prune(Magnitude(), round_to=1).plan(Untraceable(), task)
    assert plan.decisions["kept"] == {} and plan.decisions["left_alone"]


def test_tied_weights_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)
            self.d = nn.Linear(16, 16)
            self.d.weight = self.b.weight

        def forward(self, x):
            return self.c(F.relu(self.d(F.relu(self.b(F.relu(self.a(x)))))))

    task = RandomTask(lambda n, g: {"x": torch.randn(n, 8, generator=g)})
    plan = Prune(Magnitude(), round_to=1).plan(Tied(), task)
    assert "is shared" in plan.decisions["left_alone"]["a"] and plan.decisions["kept"] == {}
