"""Depth pruning against models put together from the kept blocks by hand."""

import copy
import math

import pytest
import torch
from pruning_cases import IMAGES, MODELS, TOKENS, build, llama, qwen3, restless
from torch import nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.models import encoder, resnet
from limbeck.plan import Plan, apply
from limbeck.pruning import AngularDistance, EvenSpacing, PruneLayers
from limbeck.pruning.depth import _even, angular_distance, find_stacks
from limbeck.signals import call, first_tensor


def outputs(model, task):
    with torch.no_grad():
        return first_tensor(call(model.eval(), task.example(3)))


def test_angular_distance_in_closed_form():
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]]])
    y = torch.tensor([[[0.0, 3.0], [5.0, 0.0], [-1.0, -1.0]]])
    assert angular_distance(x, y).item() == pytest.approx((0.5 + 0 + 1) / 3)
    assert angular_distance(x, y, torch.tensor([[1, 1, 0]])).item() == pytest.approx(0.25)
    assert angular_distance(x, x).item() == 0
    images = torch.randn(2, 3, 4, 4)
    assert angular_distance(images, -images).item() == pytest.approx(1)
    turned = torch.tensor([[math.cos(0.3), math.sin(0.3)]])
    assert angular_distance(torch.tensor([[1.0, 0.0]]), turned).item() == pytest.approx(0.3 / math.pi)


@pytest.mark.parametrize("name", ["encoder", "gpt", "vit", "bert", "gpt2", "llama", "qwen3"])
def test_indices_keep_exactly_those_blocks(name):
    model, task = build(name)
    path = next(iter(find_stacks(model)))
    stack, last = model.get_submodule(path), len(model.get_submodule(path)) - 1
    by_hand = copy.deepcopy(model)
    parent, _, attribute = path.rpartition(".")
    setattr(by_hand.get_submodule(parent), attribute, nn.ModuleList([by_hand.get_submodule(path)[last]]))
    if hasattr(by_hand, "config"):
        by_hand.config.num_hidden_layers = 1
        for module in by_hand.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = 0
    expected = outputs(by_hand, task)
    plan = PruneLayers(keep=[last]).plan(model, task)
    assert len(stack) == last + 1, "plan leaves the model as it was"
    pruned = apply(model, plan)
    assert torch.equal(outputs(pruned, task), expected)
    fresh = apply(MODELS[name][0](), Plan.from_json(plan.to_json()))
    fresh.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(outputs(fresh, task), expected)


def test_configuration_and_cache_positions_follow_and_other_models_do_not():
    model, task = build("llama")
    other = type(model)(model.config)
    full = outputs(other, task)
    pruned = apply(model, PruneLayers(keep=(0, 2)).plan(model, task))
    assert pruned.config.num_hidden_layers == pruned.model.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1]
    assert all(layer.self_attn.config is pruned.config for layer in pruned.model.layers)
    assert other.config.num_hidden_layers == 3 and torch.equal(outputs(other, task), full)
    tokens = torch.randint(0, 50, (1, 6))
    with torch.no_grad():
        at_once = pruned(tokens).logits
        first = pruned(tokens[:, :4], use_cache=True)
        rest = pruned(tokens[:, 4:], past_key_values=first.past_key_values, use_cache=True).logits
    torch.testing.assert_close(rest, at_once[:, 4:], rtol=1e-4, atol=1e-5)


def test_per_layer_lists_of_the_configuration_are_cut():
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    model = qwen3(layer_types=kinds, use_sliding_window=True, sliding_window=4)
    plan = PruneLayers(keep=[0, 2]).plan(model, TOKENS)
    assert plan.decisions["config"][""]["layer_types"] == ["full_attention", "full_attention"]


def test_the_block_that_turns_least_goes_first():
    model = restless(encoder(50, 2, 16, 4, 32, 4), 1)
    with torch.no_grad():
        for module in (model.blocks[2].attention.output, model.blocks[2].feed_forward.down):
            module.weight.zero_()
            module.bias.zero_()
    expected = outputs(model, TOKENS)
    plan = PruneLayers(keep=3, scorer=AngularDistance(batches=2, batch_size=4)).plan(model, TOKENS)
    assert plan.decisions["kept"] == {"blocks": [0, 1, 3]}
    torch.testing.assert_close(outputs(apply(model, plan), TOKENS), expected)


def test_stages_of_a_resnet_lose_only_blocks_that_keep_the_shape():
    model = restless(resnet(20), 1)
    plan = PruneLayers(keep=5, scorer=AngularDistance(batches=1, batch_size=4)).plan(model, IMAGES)
    kept = plan.decisions["kept"]
    assert set(kept) == {"layer1", "layer2", "layer3"} and sum(map(len, kept.values())) == 5
    assert kept["layer2"][0] == 0 and kept["layer3"][0] == 0
    assert set(plan.decisions["left_alone"]) == {"layer2.0", "layer3.0"}
    by_hand = copy.deepcopy(model)
    for path, indices in kept.items():
        setattr(by_hand, path, nn.Sequential(*[by_hand.get_submodule(path)[i] for i in indices]))
    expected = outputs(by_hand, IMAGES)
    assert torch.equal(outputs(apply(model, plan), IMAGES), expected)
    with pytest.raises(UsageError, match=r"between 3 and \d+ can stay"):
        PruneLayers(keep=2).plan(restless(resnet(20), 1), IMAGES)


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_even_spacing(count, expected):
    names = [str(i) for i in range(6)]
    assert _even({"s": names}, [], count) == {f"s.{i}" for i in expected}


@pytest.mark.parametrize("count", range(3, 10))
def test_even_spacing_over_several_stacks_gives_the_count(count):
    stacks = {path: ["0", "1", "2"] for path in "abc"}
    chosen = _even(stacks, ["b.0", "c.0"], count)
    assert len(chosen) == count and {"b.0", "c.0"} <= chosen
    assert all(any(block.startswith(path) for block in chosen) for path in stacks)


def test_keeping_all_blocks_is_the_identity_and_needs_no_scores():
    model, task = build("bert")
    expected = outputs(model, task)
    for keep in (1.0, 2, (0, 1)):
        plan = PruneLayers(keep=keep).plan(model, task)
        assert plan.decisions["config"] == {}
        assert torch.equal(outputs(apply(copy.deepcopy(model), plan), task), expected)
    half = PruneLayers(keep=0.5, scorer=EvenSpacing()).plan(model, task)
    assert half.decisions["kept"] == {"bert.encoder.layer": [0]}
    assert half.decisions["config"][""]["num_hidden_layers"] == 1


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, [], [1, 0], [0, 0], [-1], True, "all"])
def test_nothing_or_nonsense_is_refused(keep):
    with pytest.raises(UsageError, match="PruneLayers: keep"):
        PruneLayers(keep=keep)


def test_other_mistakes_are_named():
    model, task = build("encoder")
    with pytest.raises(UsageError, match="Did you mean 'blocks'"):
        PruneLayers(keep=1, path="block").plan(model, task)
    with pytest.raises(UsageError, match="blocks 0 to 1, not 7"):
        PruneLayers(keep=[7]).plan(model, task)
    with pytest.raises(UsageError, match="names no ModuleList"):
        PruneLayers(keep=1, path="head").plan(model, task)
    with pytest.raises(UsageError, match="indices need one stack"):
        PruneLayers(keep=[0]).plan(resnet(14), IMAGES)
    with pytest.raises(UsageError, match="changes the shape"):
        PruneLayers(keep=[1], path="layer2").plan(resnet(14), IMAGES)
    with pytest.raises(UsageError, match="pass the task"):
        PruneLayers(keep=1).plan(model)
    plan = PruneLayers(keep=1).plan(model, task)
    with pytest.raises(ArtifactError, match="made for 2 blocks"):
        apply(encoder(50, 2, 16, 3, 32, 4), plan)
    with pytest.raises(ArtifactError, match="does not have"):
        apply(llama(), plan)
