"""Rounding and scales learned together on a block's output (Genie-M): the weight against its formula, and that both move."""

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.quantization import AffineGrid, BlockReconstruction, IntegerGrid, PerChannel, Quantizer
from limbeck.quantization.adaptive_rounding import Choice
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.chains import Call
from limbeck.quantization.streaming import Segment

QUANTIZERS = {
    "symmetric": Quantizer(IntegerGrid(3), PerChannel(0)),
    "asymmetric": Quantizer(IntegerGrid(2, False, False), PerChannel(0)),
    "affine": Quantizer(AffineGrid(2), PerChannel(0)),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_value_and_gradients_of_the_soft_weight(name):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=draw)
    choice = Choice(weight, AffineForm.of(weight, QUANTIZERS[name], "a test"))
    start, form = choice.form.scale, choice.form
    scale = (1.2 * start).requires_grad_(True)
    found = choice.soft(form.with_parameters(scale, form.offset))
    pull = torch.randn(5, 12, generator=draw)
    gradient, of_v = torch.autograd.grad((found * pull).sum(), (scale, choice.v))

    other, v = (1.2 * start).double().requires_grad_(True), choice.v.detach().double().requires_grad_(True)
    h = (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)
    wide, first = other.view(5, 1), start.double().view(5, 1)
    offset = form.offset.double().view(5, 1)
    if name == "affine":
        q = (torch.floor((weight.double() - offset) / first) + h).clamp(0, 3)
        expected = wide * q + offset
    else:
        zero = torch.round(-offset / first)
        low, high = (0, 3) if name == "asymmetric" else (-3, 3)
        expected = wide * ((torch.floor(weight.double() / first + zero) + h).clamp(low, high) - zero)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad((expected * pull).sum(), (other, v))
    torch.testing.assert_close(gradient.double().flatten(), wanted[0].flatten(), rtol=1e-3, atol=1e-4)
    inside = (choice.floor + h.detach() > form.low + 1e-3) & (choice.floor + h.detach() < form.high - 1e-3)
    torch.testing.assert_close(of_v.double()[inside], wanted[1][inside], rtol=1e-3, atol=1e-4)
    assert inside.float().mean() > 0.5


def one_layer(seed=0):
    """A block of one linear layer as a segment, with three batches and the float layer's outputs."""
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(12, 5))
    segment = Segment("block", ["block.0"], block, [], [])
    segment.hidden = [torch.randn(20, 12) for _ in range(3)]
    segment.calls = [Call([None], {}, 0) for _ in range(3)]
    segment.targets = [block(x).detach() for x in segment.hidden]
    return segment


def naive(segment, start, zero, steps, rate, scale_rate, penalty, warmup):
    """The training written out: codes (5, 12) and scales (5, 1) at its end. start (5, 1): the first scales; zero (5, 1)."""
    linear = segment.block[0]
    w, bias, scale = linear.weight.detach().clone(), linear.bias.detach(), start.clone().requires_grad_(True)
    base = torch.floor(w / start + zero)
    v = torch.logit(((w / start + zero - base).clamp(0, 1) + 0.1) / 1.2).requires_grad_(True)

    def error(weight, index):
        return (segment.hidden[index] @ weight.T + bias - segment.targets[index]).square().sum(1).mean()

    nearest = start * (torch.round(w / start + zero).clamp(0, 3) - zero)
    unit = float(sum(error(nearest, index) for index in range(3)) / 3) / w.numel()
    optimizer = torch.optim.Adam([{"params": [v], "lr": rate}, {"params": [scale], "lr": scale_rate}])
    order = torch.randint(3, (steps,), generator=torch.Generator().manual_seed(0)).tolist()
    for step, index in enumerate(order):
        h = (1.2 * torch.sigmoid(v) - 0.1).clamp(0, 1)
        used = scale if step >= warmup * steps else scale.detach()
        loss = error(used * ((base + h).clamp(0, 3) - zero), index)
        if step >= warmup * steps:
            beta = 2 + 18 * (1 - (step - warmup * steps) / (steps - warmup * steps))
            loss = loss + penalty * unit * (1 - (2 * h - 1).abs() ** beta).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (base + (v > 0)).clamp(0, 3).detach(), scale.detach()


def test_roundings_and_scales_are_those_of_the_training_written_out():
    segment, quantizer = one_layer(), Quantizer(IntegerGrid(2, False, False), PerChannel(0))
    form = AffineForm.of(segment.block[0].weight.detach(), quantizer, "a test")
    start, zero = form.scale.view(5, 1), form.zero_point.view(5, 1)
    codes, scale = naive(segment, start, zero, 120, 0.1, 1e-3, 30.0, 0.2)
    rounding = BlockReconstruction(iterations=120, learning_rate=0.1, scale_rate=1e-3, penalty=30.0)
    packed = rounding.solve(segment, {"block.0": quantizer})["block.0"]
    torch.testing.assert_close(packed.scale, scale.flatten(), rtol=1e-3, atol=1e-4)
    assert (packed.scale - start.flatten()).abs().max() > 1e-3
    assert torch.equal(quantizer.grid.codes(packed).float(), codes)
    torch.testing.assert_close(segment.block[0].weight.detach(), scale * (codes - zero), rtol=1e-3, atol=1e-3)


def test_scales_rest_without_a_rate_and_bad_rates_are_refused():
    quantizer = Quantizer(IntegerGrid(2), PerChannel(0))
    segment = one_layer()
    start = AffineForm.of(segment.block[0].weight.detach(), quantizer, "a test").scale
    packed = BlockReconstruction(iterations=9).solve(segment, {"block.0": quantizer})["block.0"]
    assert torch.equal(packed.scale, start)
    with pytest.raises(UsageError, match="scale_rate=-1"):
        BlockReconstruction(scale_rate=-1)


def test_where_the_training_does_not_help_the_first_scales_stay():
    quantizer = Quantizer(IntegerGrid(2), PerChannel(0))
    segment = one_layer()
    weight = segment.block[0].weight.detach().clone()
    rounding = BlockReconstruction(iterations=3, learning_rate=5.0, scale_rate=0.5)
    packed = rounding.solve(segment, {"block.0": quantizer})["block.0"]
    expected = quantizer.encode(weight)
    assert torch.equal(packed.scale, expected.scale) and torch.equal(packed.codes, expected.codes)
