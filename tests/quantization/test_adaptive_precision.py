"""Precision that follows training: both searches against trying everything, the state of a window, and training that would stall."""

import math

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.models import resnet
from limbeck.objectives import CrossEntropy
from limbeck.quantization import (
    AdaptivePrecision,
    mean_words,
    on_fixed_point,
    precisions,
    relative_cost,
    store_fixed_point,
)
from limbeck.quantization.adaptive_precision import OnFixedPoint, information_loss, push_down, push_up
from limbeck.quantization.fixed_point import fixed_point, whole_bits
from limbeck.tasks import CustomTask
from limbeck.training import Supervised, Trainer, TrainingConfig


def weights(size=4000, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_loss_is_the_divergence_of_two_histograms():
    x, rounded = torch.tensor([0.0, 0.1, 0.4, 0.6, 1.0]), torch.tensor([0.0, 0.0, 0.5, 0.5, 1.25])
    p = [3 - 1 + 0.5, 1 + 0.5, 1 + 0.5, 1 + 0.5]  # 0, 0.1 | 0.4 | 0.6 | 1.0 in four bins
    q = [2.5, 0.5, 2.5, 1.5]
    expected = sum(a / sum(p) * math.log(a * sum(q) / b / sum(p)) for a, b in zip(p, q))
    assert information_loss(x, rounded, 4) == pytest.approx(expected)
    assert information_loss(x, x, 4) == 0.0
    flat = torch.ones(5)
    assert information_loss(flat, flat, 4) == 0.0 and information_loss(flat, 0 * flat, 4) == math.inf


def test_the_loss_falls_with_the_fraction():
    x = weights()
    found = [information_loss(x, fixed_point(x, whole_bits(x, f), f), 50) for f in range(2, 12)]
    assert found == sorted(found, reverse=True) and found[0] > 1 and found[-1] < 1e-2


@pytest.mark.parametrize("tolerance", [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("scale", [1.0, 40.0, 1e-3])
def test_bisection_finds_what_trying_every_fraction_finds(tolerance, scale):
    x = weights() * scale
    word, fraction = push_down(x, 50, tolerance)
    tried = range(-10, 26)
    good = [
        f
        for f in tried
        if whole_bits(x, f) <= 16 and information_loss(x, fixed_point(x, whole_bits(x, f), f), 50) <= tolerance
    ]
    assert fraction == min(good) and word == whole_bits(x, fraction)


def test_push_down_of_what_needs_everything_or_nothing():
    assert push_down(torch.zeros(5), 50, 1e-2) == (2, 0)
    x = weights()
    word, fraction = push_down(x, 4000, 1e-9, longest=8)
    assert word <= 8 and whole_bits(x, fraction + 1) > 8
    assert push_down(torch.tensor([0.5, -0.5] * 20), 50, 1e-2) == (2, 1)


def test_gradients_that_agree_need_no_bits_and_those_that_cancel_many():
    draw = torch.Generator().manual_seed(0)
    same = torch.randn(100, generator=draw).expand(16, 100)
    apart = torch.randn(16, 3000, generator=draw)
    cancelling = same * torch.tensor([1.0, -1.0] * 8)[:, None] + 1e-3 * apart[:, :100]
    found = []
    for gradients in (same, apart, cancelling):
        squares, net = float(gradients.square().sum()), float(gradients.sum(0).norm())
        found.append(push_up(squares, net, 16, most=20))
        ratio = math.sqrt(16 * squares) / net
        assert found[-1] == max(0, math.ceil(math.log2(ratio) - 1e-6))
    assert found[0] == 0 and found[1] in (2, 3) and found[2] > 8
    assert push_up(squares, net, 16, most=3) == 3
    assert push_up(1.0, 0.0, 4, most=5) == 5 and push_up(0.0, 0.0, 4, 5) == 0


def task(examples=64):
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(examples, 3, 8, 8, generator=draw), torch.randint(0, 4, (examples,), generator=draw)
    x[range(examples), y % 3] += 1.5
    return CustomTask({"train": (x, y), "test": (x, y)}, classes=4)


def made(**settings):
    torch.manual_seed(0)
    return on_fixed_point(resnet(8, 4, 3, 4), **settings)


def config(steps):
    return TrainingConfig(steps=steps, batch_size=16, learning_rate=0.05, optimizer="sgd")


def test_a_window_collects_gradients_and_then_chooses():
    model = made()
    fixed = dict.fromkeys(precisions(model), (8, 6))
    procedure = AdaptivePrecision(Supervised(model, CrossEntropy()), window=3)
    trainer = Trainer(config(2), seed=0, progress=False)
    trainer.run(procedure, task())
    assert precisions(model) == fixed
    assert all(int(found.steps) == 2 and float(found.squares) > 0 for _, found, _ in procedure.layers)
    model = made()
    procedure = AdaptivePrecision(Supervised(model, CrossEntropy()), window=3, most=0, tolerance=1e-2)
    Trainer(config(3), seed=0, progress=False).run(procedure, task())
    for path, found, original in procedure.layers:
        word, fraction = push_down(original.detach(), 50, 1e-2)
        assert precisions(model)[path] == (min(16, word + 1), fraction)
        assert int(found.steps) == 0 and float(found.squares) == 0 and not found.total.any()


def test_collected_gradients_are_those_of_the_rounded_weights():
    layer = on_fixed_point(nn.Sequential(nn.Linear(3, 2)), stochastic=False)
    found = layer[0].parametrizations.weight[0]
    x, kept = torch.randn(5, 3), []
    for _ in range(3):
        layer(x).square().sum().backward()
        kept.append(layer[0].parametrizations.weight.original.grad.clone())
        layer.zero_grad()
    assert int(found.steps) == 3
    torch.testing.assert_close(found.total, sum(kept))
    assert float(found.squares) == pytest.approx(float(sum(g.square().sum() for g in kept)), rel=1e-5)
    with torch.no_grad():
        layer(x)
    assert int(found.steps) == 3


def test_words_are_counted_pass_by_pass():
    layer = on_fixed_point(nn.Sequential(nn.Linear(3, 2)), word=8)
    found = layer[0].parametrizations.weight[0]
    for word in (8, 8, 5):
        found.word.fill_(word)
        layer(torch.randn(5, 3)).sum().backward()
    assert mean_words(layer) == {"0": 7.0}


def test_evaluation_rounds_to_the_nearest_and_training_does_not():
    model = made(word=6, fraction=5)
    layer, found = model.layer1[0].conv1, model.layer1[0].conv1.parametrizations.weight
    model.eval()
    assert torch.equal(layer.weight, fixed_point(found.original, 6, 5)) and torch.equal(layer.weight, layer.weight)
    model.train()
    drawn = [layer.weight.detach() for _ in range(2)]
    assert not torch.equal(*drawn)
    steps = (drawn[0] - found.original.detach().clamp(-1, 31 / 32)).abs() * 32
    assert float(steps.max()) <= 1.0


def test_what_is_stored_is_what_was_evaluated():
    model = made(word=5, fraction=4).eval()
    x = torch.randn(4, 3, 8, 8)
    before = model(x)
    stored = store_fixed_point(model)
    torch.testing.assert_close(model(x), before)
    assert stored["fc.weight"].codes.numel() == 4 * math.ceil(16 * 5 / 8)
    assert float(stored["fc.weight"].scale) == 2.0**-4
    with pytest.raises(UsageError, match="on_fixed_point"):
        store_fixed_point(model)


def test_stochastic_rounding_moves_where_the_nearest_stalls():
    """A parabola whose steps are a tenth of the grid's: kept on the grid itself, only stochastic rounding gets anywhere."""
    draw = torch.Generator().manual_seed(0)
    ends = []
    for stochastic in (True, False):
        w = torch.zeros(200)
        for _ in range(200):
            w = w - 0.025 * (w - 0.9)
            noise = torch.rand(200, generator=draw) if stochastic else None
            w = fixed_point(w, 8, 3, noise)
        ends.append(float(w.mean()))
    assert ends[0] == pytest.approx(0.9, abs=0.05) and ends[1] == 0.0


def test_sparsity_is_added_to_the_loss():
    model = made(stochastic=False)
    inner = Supervised(model, CrossEntropy())
    procedure = AdaptivePrecision(inner, window=5, sparsity=0.01)
    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.tensor([0, 1, 2, 3])}
    plain, loss = inner.step(batch, None)["main"], procedure.step(batch, None)["main"]
    size = sum(float(original.detach().abs().sum()) for _, _, original in procedure.layers)
    assert float((loss.value - plain.value).detach()) == pytest.approx(0.01 * size, rel=1e-3)


def test_the_cost_of_layers_made_by_hand():
    assert relative_cost({"a": 100, "b": 300}, {"a": 8, "b": 16, "c": 2}) == pytest.approx((800 + 4800) / (32 * 400))
    assert relative_cost({"a": 5}, {"a": 32}) == 1.0
    with pytest.raises(UsageError, match="'b'"):
        relative_cost({"b": 1}, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 0},
        {"bins": 1},
        {"most": -1},
        {"longest": 17},
        {"tolerance": 0.0},
        {"sparsity": -1.0},
    ],
)
def test_settings_that_cannot_be_right(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        AdaptivePrecision(Supervised(made(), CrossEntropy()), **{"window": 2, **settings})


def test_models_that_are_not_prepared_and_lengths_out_of_range():
    with pytest.raises(UsageError, match="on_fixed_point first"):
        AdaptivePrecision(Supervised(resnet(8, 4, 3, 4), CrossEntropy()), window=2)
    with pytest.raises(UsageError, match="word=1"):
        made(word=1)
    with pytest.raises(UsageError, match="no linear or convolution"):
        on_fixed_point(nn.ReLU())
    assert isinstance(made().fc.parametrizations.weight[0], OnFixedPoint)
