"""Spiking neurons, against loops over time, and the unrolled network."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import spiking_vit
from limbeck.models.spiking import LIF, SCALE, ClippedUnit, InformationLIF, SpikingAttention, unroll
from limbeck.signals import capture

SIZES = {"size": 4, "patch": 2, "classes": 3, "channels": 1, "depth": 2, "width": 8, "heads": 2, "hidden": 16}


def test_information_enhanced_neurons_by_hand():
    x = torch.tensor([-0.3, 0.0, 0.12, 0.13, 0.5, 0.8, 1.0, 3.0], requires_grad=True)
    found = InformationLIF(4)(x)
    assert found.tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    found.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert InformationLIF(4, gain=2.0)(x).tolist() == [0, 0, 0, 0.5, 1, 1.5, 2, 2]


def test_lif_neurons_by_a_loop_over_time():
    x = np.random.default_rng(0).normal(0.6, 0.8, size=(4, 3, 5)).astype(np.float32)
    held, expected = np.zeros((3, 5), np.float32), []
    for t in range(4):
        potential = held + x[t]
        fired = potential >= 1
        held = np.where(fired, 0, potential * np.float32(0.5))
        expected.append(fired.astype(np.float32))
    found = LIF(4)(torch.from_numpy(x).flatten(0, 1))
    assert found.unflatten(0, (4, 3)).numpy().tolist() == np.stack(expected).tolist()
    assert 0.1 < float(found.mean()) < 0.9


def test_gradients_of_lif_neurons_are_the_surrogates():
    x = torch.tensor([[0.8], [0.8]], requires_grad=True)  # potentials 0.8 and 1.2: the second fires
    fired = LIF(2)(x)
    assert fired.flatten().tolist() == [0, 1]
    fired.sum().backward()
    # s1 = g(u1), s2 = g(u1 (1 - s1) / 2 + x2), slopes 1 near the threshold: ds1/dx1 = 1, ds2/dx1 = (1 - u1) / 2, ds2/dx2 = 1
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([1 + 0.5 * (1 - 0.8), 1.0]))


def test_unrolled_spikes_are_binary_and_their_mean_is_the_level():
    levels = torch.arange(5) / 4
    spikes = unroll(levels, 4)
    assert spikes.shape == (4, 5) and set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), levels)


@torch.no_grad()
def test_attention_by_hand():
    torch.manual_seed(0)
    layer = SpikingAttention(8, 2, lambda gain=1.0: InformationLIF(4, gain)).eval()
    for parameter in (layer.query.weight, layer.key.weight, layer.value.weight):
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 8)
    level = InformationLIF(4)
    parts = {n: level(getattr(layer, f"{n}_norm")(F.linear(level(x), getattr(layer, n).weight))) for n in ("query", "key", "value")}  # fmt: skip
    mixed = torch.zeros(2, 5, 8)
    for b in range(2):
        for i in range(5):
            for head in (slice(0, 4), slice(4, 8)):
                for j in range(5):
                    score = float(parts["query"][b, i, head] @ parts["key"][b, j, head])
                    mixed[b, i, head] += SCALE * score * parts["value"][b, j, head]
    seen = {}
    layer.mixed_spike.register_forward_pre_hook(lambda _, args: seen.update(mixed=args[0]))
    found = layer(x)
    torch.testing.assert_close(seen["mixed"], mixed)
    assert float(mixed.max()) > 0.1
    torch.testing.assert_close(found, layer.output_norm(F.linear(2 * level(mixed), layer.output.weight)))


def test_the_network_on_single_spikes_answers_what_training_computed():
    torch.manual_seed(1)
    model = spiking_vit(**SIZES).eval()
    x = torch.randn(3, 1, 4, 4)
    expected = model(x)
    handles, seen = [], []

    def on_spikes(layer, args, _):
        gain = 2.0 if seen_gain[layer] else 1.0
        spikes = unroll(args[0] / gain, 4)
        seen.append(spikes.unique().tolist())
        return torch.stack([F.linear(each, layer.weight) for each in spikes]).mean(0) * gain

    inside = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear) and path != "head"}
    seen_gain = {layer: path.endswith("attention.output") for path, layer in inside.items()}
    for layer in inside.values():
        handles.append(layer.register_forward_hook(on_spikes))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 12 and all(set(values) <= {0.0, 1.0} for values in seen)


def test_the_counterpart_is_the_limit_of_many_steps():
    x = torch.linspace(-1, 2, 50)
    torch.testing.assert_close(InformationLIF(100_000)(x), ClippedUnit()(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("neuron", ["information", "lif", "clip"])
def test_every_kind_runs_learns_and_is_built_again(neuron):
    torch.manual_seed(2)
    model = spiking_vit(**SIZES, neuron=neuron)
    x = torch.randn(6, 1, 4, 4)
    logits = model(x)
    assert logits.shape == (6, 3)
    F.cross_entropy(logits, torch.arange(6) % 3).backward()
    assert float(model.blocks[0].attention.query.weight.grad.abs().max()) > 0
    again = build(lineage(model).factory)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(x), model.eval()(x))
    fired = capture(model, {"pixel_values": x}, {"blocks.0.attention.query_spike"})["blocks.0.attention.query_spike"]
    assert fired.shape == ((24 if neuron == "lif" else 6), 4, 8)


def test_bad_settings_are_refused():
    with pytest.raises(UsageError, match="neuron"):
        spiking_vit(**SIZES, neuron="relu")
    with pytest.raises(UsageError, match="patch"):
        spiking_vit(**SIZES | {"patch": 3})
    with pytest.raises(UsageError, match="steps"):
        spiking_vit(**SIZES, steps=0)
