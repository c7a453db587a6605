"""Scorers against sums written out by hand."""

import pytest
import torch
from pruning_cases import IMAGES, TOKENS, build, restless
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import resnet
from limbeck.pruning import ActivationNorm, BatchNormScale, Magnitude, Prune, Random, Taylor
from limbeck.pruning.groups import find_groups
from limbeck.pruning.importance import Context, measure
from limbeck.pruning.structured import score_group
from limbeck.signals import call, first_tensor


def one_group(name="layer2.0.conv1"):
    model = restless(resnet(8), 3)
    return model, next(g for g in find_groups(model, IMAGES.example(2))[0] if g.name == name)


def scored(model, group, scorer, task=IMAGES):
    readers = [m.path for m in group.members if m.axis == "in"]
    return score_group(model, group, scorer, measure(model, task, scorer, readers))


def owned(model, item):
    """What channel `item` of layer2.0.conv1 owns: its filter, its normalization, the next layer's weights that read it."""
    block = model.layer2[0]
    return [block.conv1.weight[item], block.bn1.weight[item], block.bn1.bias[item], block.conv2.weight[:, item]]


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_norm_of_everything_an_item_owns(p):
    model, group = one_group()
    found = scored(model, group, Magnitude(p))
    for item in (0, 13, 31):
        elements = torch.cat([tensor.detach().flatten() for tensor in owned(model, item)])
        assert found[item].item() == pytest.approx(elements.norm(p).item(), rel=1e-5)


def test_taylor_is_the_mean_over_batches_of_summed_weight_times_gradient():
    model, group = one_group()
    found = scored(model, group, Taylor(batches=2, batch_size=4))
    expected = torch.zeros(32)
    for number, batch in enumerate(IMAGES.batches("train", 4)):
        if number == 2:
            break
        model.zero_grad()
        IMAGES.loss(first_tensor(call(model, batch)), batch).backward()
        block = model.layer2[0]
        for item in range(32):
            pairs = [
                (block.conv1.weight[item], block.conv1.weight.grad[item]),
                (block.bn1.weight[item], block.bn1.weight.grad[item]),
                (block.bn1.bias[item], block.bn1.bias.grad[item]),
                (block.conv2.weight[:, item], block.conv2.weight.grad[:, item]),
            ]
            expected[item] += sum((w * g).abs().sum().item() for w, g in pairs) / 2
    assert (expected > 0).sum() >= 24  # a dead channel is possible, not more than a few
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_taylor_predicts_the_change_of_the_loss():
    """For a small weight, removing it changes the loss by w g to first order."""
    model, group = one_group()
    with torch.no_grad():
        for tensor in owned(model, 5):
            tensor.mul_(1e-3)
    ranked = scored(model, group, Taylor(batches=1, batch_size=8)).argsort()
    assert ranked[0] == 5


def test_batch_norm_scale_is_gamma():
    model, group = one_group()
    torch.testing.assert_close(scored(model, group, BatchNormScale()), model.layer2[0].bn1.weight.detach().abs())
    model, task = build("encoder")
    with pytest.raises(UsageError, match=r"no batch normalization.*Magnitude"):
        Prune(BatchNormScale()).plan(model, task)


def test_activation_norm_weighs_reading_weights_by_what_they_read():
    model, group = one_group()
    found = scored(model, group, ActivationNorm(batches=1, batch_size=4))
    seen = []
    block = model.layer2[0]
    handle = block.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        call(model, next(IMAGES.batches("train", 4)))
    handle.remove()
    rms = seen[0].square().mean((0, 2, 3)).sqrt()
    torch.testing.assert_close(found, block.conv2.weight.detach().abs().sum((0, 2, 3)) * rms, rtol=1e-4, atol=1e-6)


def test_padding_does_not_count_in_input_norms():
    model, task = build("encoder")
    scorer = ActivationNorm(batches=1, batch_size=4)
    path = "blocks.0.feed_forward.down"
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = next(task.batches("train", 4))
    with torch.no_grad():
        call(model, batch)
    handle.remove()
    expected = seen[0][batch["attention_mask"].bool()].square().mean(0).sqrt()
    torch.testing.assert_close(measure(model, task, scorer, [path]).inputs[path], expected)
    assert not torch.allclose(expected, seen[0].square().mean((0, 1)).sqrt())


def test_random_depends_on_seed_and_name_only():
    first, second = Context(8, [torch.zeros(8, 1)], name="a"), Context(8, [torch.ones(8, 1)], name="a")
    assert torch.equal(Random(0).score(first), Random(0).score(second))
    assert not torch.equal(Random(0).score(first), Random(1).score(first))
    assert not torch.equal(Random(0).score(first), Random(0).score(Context(8, [], name="b")))


@pytest.mark.parametrize("scorer", [Taylor(), ActivationNorm()])
def test_a_scorer_that_needs_data_says_so(scorer):
    with pytest.raises(UsageError, match="pass the task"):
        measure(nn.Linear(2, 2), None, scorer, [])


@pytest.mark.parametrize(
    "make", [lambda: Magnitude(3), lambda: Taylor(batches=0), lambda: ActivationNorm(batch_size=0)]
)
def test_bad_settings_are_refused(make):
    with pytest.raises(UsageError, match="must be"):
        make()


def test_measuring_leaves_the_model_as_it_was():
    model, task = build("encoder")
    model.train()
    model.blocks[0].eval()
    model.head.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    for scorer in (Taylor(batches=1, batch_size=2), ActivationNorm(batches=1, batch_size=2)):
        measure(model, task, scorer, ["head"])
        assert [m.training for m in model.modules()] == modes
        assert not model.head.weight.requires_grad and all(p.grad is None for p in model.parameters())
    assert TOKENS is task


class Joined(nn.Module):
    """One stream of 24 channels: a convolution plus the concatenation of two narrower ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 24, 1)
        self.read = nn.Conv2d(24, 4, 1)

    def forward(self, pixel_values):
        stream = self.c(pixel_values) + torch.cat([self.a(pixel_values), self.b(pixel_values)], 1)
        return self.read(stream.relu()).mean((2, 3))


def test_items_that_own_nothing_in_a_tensor_gain_nothing_from_it():
    model = restless(Joined(), 2)
    expected = {}
    for channel in range(24):
        part, position = (model.a, channel) if channel < 16 else (model.b, channel - 16)
        owned = [part.weight[position], part.bias[position : position + 1], model.c.weight[channel]]
        owned += [model.c.bias[channel : channel + 1], model.read.weight[:, channel]]
        expected[channel] = sum(tensor.abs().sum().item() for tensor in owned)
    found = {}
    groups, left = find_groups(model, IMAGES.example(2))
    assert set(left) == {"read"}
    for group in groups:
        stream = next(m.index[:, 0].tolist() for m in group.members if m.path == "c")
        found |= dict(zip(stream, scored(model, group, Magnitude()).tolist()))
    assert found == pytest.approx(expected, rel=1e-5)
