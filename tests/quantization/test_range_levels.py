"""Levels within a range: values by naive loops, the gradient of learned levels, and training of weights or of levels."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.plan import apply
from limbeck.quantization import (
    AffineGrid,
    PerChannel,
    PerGroup,
    PerTensor,
    Quantize,
    Quantizer,
    RangeLevelGrid,
    finish_qat,
    prepare_qat,
)
from limbeck.quantization.contract import Packed
from limbeck.quantization.straight_through import fake_on_grid


def naive(x, levels, size):
    """Group by group of each row, element by element."""
    out = []
    for row in x.tolist():
        for start in range(0, len(row), size):
            run = row[start : start + size]
            low, high = min(run), max(run)
            for value in run:
                v = (value - low) / (high - low) if high > low else 0.0
                level = min(levels, key=lambda p: abs(p - v))
                out.append(low + (high - low) * level)
    return torch.tensor(out).reshape(x.shape)


def with_levels(x, levels, granularity):
    quantizer = Quantizer(RangeLevelGrid((len(levels) - 1).bit_length()), granularity, "uniform")
    return quantizer, quantizer.project(x, Packed(x, None, None, tuple(x.shape), levels))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_are_those_of_a_naive_loop(bits):
    x = torch.randn(5, 40)
    for levels in (torch.linspace(0, 1, 2**bits), torch.rand(2**bits).sort().values):
        quantizer, packed = with_levels(x, levels, PerGroup(16))
        torch.testing.assert_close(quantizer.decode(packed), naive(x, levels.tolist(), 16))
    uniform = Quantizer(RangeLevelGrid(bits), PerGroup(16), "uniform")
    found = uniform.decode(uniform.encode(x))
    torch.testing.assert_close(found, naive(x, torch.linspace(0, 1, 2**bits).tolist(), 16))
    affine = Quantizer(AffineGrid(bits), PerGroup(16))
    torch.testing.assert_close(found, affine.decode(affine.encode(x)))


def test_the_error_is_at_most_half_a_step_and_the_ends_of_a_range_are_exact():
    x = torch.randn(10, 100)
    quantizer = Quantizer(RangeLevelGrid(3), PerChannel(0), "uniform")
    got = quantizer.decode(quantizer.encode(x))
    span = x.amax(1) - x.amin(1)
    assert bool(((x - got).abs().amax(1) <= span / 14 + 1e-6).all())
    torch.testing.assert_close(got.amax(1), x.amax(1))
    torch.testing.assert_close(got.amin(1), x.amin(1))
    flat = torch.full((1, 7), 0.3)
    assert torch.equal(quantizer.decode(quantizer.encode(flat)), flat)


def test_quantile_levels_share_the_elements_evenly():
    x = torch.randn(1, 4096).exp()
    levels = Quantizer(RangeLevelGrid(2), PerTensor(), "quantile").encode(x).codebook
    v = (x - x.min()) / (x.max() - x.min())
    for place, level in enumerate(levels.tolist()):
        assert float((v < level).float().mean()) == pytest.approx((place + 0.5) / 4, abs=0.01)


def test_the_levels_gradient_sums_span_times_gradient_over_their_weights():
    x, weights = torch.randn(3, 20), torch.randn(3, 20)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):  # unsorted levels keep their own gradients
        levels = torch.tensor([0.1, 0.4, 0.7, 0.95])[order].requires_grad_()
        quantizer = Quantizer(RangeLevelGrid(2), PerChannel(0), "uniform")
        x_in = x.clone().requires_grad_()
        found = fake_on_grid(x_in, levels, quantizer)
        torch.testing.assert_close(found.detach(), naive(x, sorted(levels.tolist()), 20))
        (found * weights).sum().backward()
        expected = torch.zeros(4)
        for row, pull in zip(x, weights):
            span = row.max() - row.min()
            for value, g in zip(((row - row.min()) / span).tolist(), pull.tolist()):
                nearest = min(range(4), key=lambda j: abs(float(levels.detach()[j]) - value))
                expected[nearest] += float(span) * g
        torch.testing.assert_close(levels.grad, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x_in.grad, weights)  # straight through


def model():
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))


def prepared(learned, net=None):
    net = net or model()
    method = "quantile" if learned else "uniform"
    transform = Quantize(grid={"name": "range_levels", "width": 2}, method=method, weights=64, activations=None, scale_type="float32")  # fmt: skip
    return prepare_qat(net, transform.plan(net), learned=learned)


def test_training_the_weights_moves_them_and_keeps_the_answers_on_levels():
    net = prepared(False)
    x, before = torch.randn(6, 2, 6, 6), {k: v.clone() for k, v in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(before[k], v) for k, v in net.named_parameters() if k.endswith("weight"))
    answers = net.eval()(x)
    stored = apply(*finish_qat(net))
    torch.testing.assert_close(stored(x), answers)
    assert len(stored[0].weight[0].unique()) <= 4


def test_training_the_levels_leaves_everything_else_alone():
    torch.manual_seed(0)
    net = model().requires_grad_(False)
    prepared(True, net)
    net.eval()
    learned = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert learned == {"0.weight_scale", "4.weight_scale"}
    x = torch.randn(6, 2, 6, 6)
    kept = copy.deepcopy(net[4].weight.detach())
    loss = net(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad / parameter.grad.norm()
    assert torch.equal(net[4].weight, kept) and float(net(x).square().mean()) < float(loss)
    answers = net.eval()(x)
    stored = apply(*finish_qat(net))
    torch.testing.assert_close(stored(x), answers)
    assert not torch.allclose(stored[4].weight_codebook, Quantizer(RangeLevelGrid(2), PerGroup(64), "quantile").encode(kept).codebook)  # fmt: skip


@pytest.mark.parametrize("width", [0, 9, 2.0])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(UsageError, match="width"):
        RangeLevelGrid(width)
