"""Quantization-aware training: gradients in closed form, and the way from fake quantization to the real thing."""

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.measure.simulated import simulated_modules
from limbeck.models import resnet
from limbeck.plan import Plan, apply
from limbeck.quantization import FoldBatchNorm, Quantize, finish_qat, plain_kernels, prepare_qat
from limbeck.quantization.grids import IntegerGrid, PerChannel, PerGroup, PerTensor, dequantize, quantize
from limbeck.quantization.quantization_aware import FakeQuantized
from limbeck.quantization.straight_through import fake_quantize, scale_gradient


class Examples:
    def __init__(self, *shape, count=32, key="pixel_values"):
        self.x, self.key = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5)), key

    def example(self, batch_size=1):
        return {self.key: self.x[:batch_size]}

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        yield {self.key: self.x}


GRIDS = [IntegerGrid(3), IntegerGrid(4, False, False), IntegerGrid(8, True, False)]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(3)], ids=str)
def test_gradients_are_the_closed_forms(grid, granularity):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 8, generator=generator) * 3).requires_grad_()
    shape = {PerTensor: (), PerChannel: (4,), PerGroup: (4, 3)}[type(granularity)]
    scale = (torch.rand(shape, generator=generator) * 0.3 + 0.1).requires_grad_()
    zero = torch.full(shape, grid.center if grid.symmetric else (grid.low + grid.high) // 2)
    out = fake_quantize(x, scale, zero, grid, granularity)
    assert torch.equal(out, dequantize(quantize(x, scale, zero, grid, granularity), scale, zero, granularity))
    upstream = torch.randn(4, 8, generator=generator)
    out.backward(upstream)
    to_x, to_scale = torch.zeros(4, 8), torch.zeros(shape)
    for i in range(4):
        for j in range(8):
            key = {PerTensor: (), PerChannel: (i,), PerGroup: (i, j // 3)}[type(granularity)]
            s, z, v, g = scale[key].item(), zero[key].item(), x[i, j].item(), upstream[i, j].item()
            code = round(v / s) + z
            if grid.low <= code <= grid.high:
                to_x[i, j] = g
                to_scale[key] += g * (round(v / s) - v / s)
            else:
                to_scale[key] += g * ((grid.low if code < grid.low else grid.high) - z)
    assert torch.allclose(x.grad, to_x)
    assert torch.allclose(scale.grad, to_scale, atol=1e-4)


def test_the_learned_step_is_a_true_gradient_away_from_rounding():
    """Where every element is clamped, fake quantization is smooth in the step, and finite differences must agree."""
    x, grid = torch.tensor([9.0, -7.0, 8.0]), IntegerGrid(4)
    scale = torch.tensor(0.1, requires_grad=True)
    fake_quantize(x, scale, 0, grid, PerTensor()).square().sum().backward()
    ends = [fake_quantize(x, torch.tensor(s), 0, grid, PerTensor()).square().sum() for s in (0.101, 0.099)]
    assert scale.grad.item() == pytest.approx((ends[0] - ends[1]).item() / 0.002, rel=1e-3)


def test_scale_gradient_keeps_the_value():
    value = torch.tensor(3.0, requires_grad=True)
    scaled = scale_gradient(value, 0.25)
    scaled.backward()
    assert scaled == 3.0 and value.grad == 0.25


def conv_net():
    torch.manual_seed(0)
    model = resnet(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    return model


def train(model, x, steps=4):
    target = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


CHAINS = {
    "plain": ({}, {}),
    "mse": ({"method": "mse", "calibration": "percentile"}, {}),
    "learned": ({}, {"learned": True}),
    "learned_w4": ({"bits": 4, "activation_bits": 4}, {"learned": True}),
    "average": ({}, {"average": 0.9}),
    "dynamic": ({"activations": "dynamic"}, {}),
    "int4_group": ({"activations": None, "bits": 4, "weights": 16}, {}),
    "tensor": ({"weights": "tensor"}, {"average": 0.5}),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("fold", [True, False], ids=["folded", "batch_norm_kept"])
def test_the_quantized_model_computes_what_was_trained(chain, fold):
    settings, options = CHAINS[chain]
    task, model = Examples(3, 12, 12), conv_net()
    if fold:
        model = apply(model, FoldBatchNorm().plan(model))
    plan = Quantize(**settings).plan(model, task)
    start = copy.deepcopy(model.state_dict())
    names = [name for name, _ in model.named_parameters()]
    model = prepare_qat(model, plan, **options)
    assert len(simulated_modules(model)) == len(plan.decisions["modules"])
    assert [name for name, _ in model.named_parameters() if "scale" not in name] == names
    losses = train(model, task.x)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        simulated = model(task.x)
    model, final = finish_qat(model, task)
    assert not any(isinstance(module, FakeQuantized) for module in model.modules())
    assert list(model.state_dict()) == list(start)
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    assert set(final.decisions["outputs"]) == set(plan.decisions["outputs"])
    quantized = apply(model, Plan.from_json(final.to_json()))
    with torch.no_grad():
        with plain_kernels():
            plain = quantized(task.x)
        fast = quantized(task.x)
    size = simulated.abs().max()
    assert (plain - simulated).abs().max() < 1e-5 * size
    assert (fast - simulated).abs().max() < 0.05 * size


def test_before_training_it_is_the_post_training_quantized_model():
    task, model = Examples(3, 12, 12), conv_net()
    model = apply(model, FoldBatchNorm().plan(model)).eval()
    plan = Quantize().plan(model, task)
    quantized = apply(copy.deepcopy(model), plan)
    for options in ({}, {"learned": True}, {"average": 0.9}):
        with torch.no_grad(), plain_kernels():
            prepared = prepare_qat(copy.deepcopy(model), plan, **options)
            assert (prepared(task.x) - quantized(task.x)).abs().max() < 1e-4


def test_learned_steps_get_the_papers_factor():
    model, task = nn.Sequential(nn.Linear(6, 4, bias=False)), Examples(6, count=8)
    plan = Quantize(weights="tensor").plan(model, task)
    model = prepare_qat(model, plan, learned=True)
    model(task.x).sum().backward()
    fake = model[0]
    weight, scale = fake.weight.detach(), fake.weight_scale.detach()
    values = quantize_input(task.x, fake)
    ratio = weight / scale
    inner = torch.where(ratio.round().abs() <= 127, ratio.round() - ratio, ratio.sign() * 127)
    expected = (values.sum(0) * inner).sum() / math.sqrt(weight.numel() * 127)
    assert fake.weight_scale.grad.item() == pytest.approx(expected.item(), rel=1e-3)
    step, zero = fake.input_scale.detach(), int(fake.input_zero_point)
    ratio = task.x / step
    codes = ratio.round() + zero
    inner = torch.where((codes >= 0) & (codes <= 255), ratio.round() - ratio, codes.clamp(0, 255) - zero)
    expected = (inner * fake.fake_weight().detach().sum(0)).sum() / math.sqrt(6 * 255)
    assert fake.input_scale.grad.item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-5)


def quantize_input(x, fake):
    with torch.no_grad():
        return fake.fake_input(x)


def test_the_moving_range_follows_in_training_only():
    model, task = nn.Sequential(nn.Linear(6, 4)), Examples(6)
    plan = Quantize(calibration="minmax").plan(model, task)
    model = prepare_qat(model, plan, average=0.75)
    low, high = model[0].input_low.item(), model[0].input_high.item()
    x = task.x * 3
    model.eval()(x)
    assert model[0].input_high.item() == high
    model.train()(x)
    assert model[0].input_high.item() == pytest.approx(0.75 * high + 0.25 * x.max().item(), rel=1e-5)
    assert model[0].input_low.item() == pytest.approx(0.75 * low + 0.25 * x.min().item(), rel=1e-5)
    expected = (model[0].input_high - model[0].input_low) / 255
    assert model[0].input_scale.item() == pytest.approx(expected.item(), rel=1e-5)
    _, final = finish_qat(model)
    assert final.decisions["modules"]["0"]["input"]["scale"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_copy_of_a_prepared_model_is_whole_and_separate():
    model, task = nn.Sequential(nn.Linear(6, 4)), Examples(6)
    model = prepare_qat(model, Quantize().plan(model, task), learned=True)
    twin = copy.deepcopy(model)
    twin[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0
    finished, _ = finish_qat(twin)
    assert finished[0].weight.abs().sum() == 0 and type(finished[0]) is nn.Linear


def test_output_ranges_are_dropped_without_a_task():
    task, model = Examples(3, 12, 12), conv_net()
    model = prepare_qat(model, Quantize().plan(model, task))
    assert finish_qat(model)[1].decisions["outputs"] == {}


def test_what_cannot_be_trained_is_refused():
    task = Examples(6)
    model = nn.Sequential(nn.Linear(6, 4))
    plan = Quantize().plan(model, task)
    with pytest.raises(UsageError, match="average=1"):
        prepare_qat(model, plan, average=1.5)
    with pytest.raises(UsageError, match="follow no average"):
        prepare_qat(model, plan, average=0.9, learned=True)
    with pytest.raises(UsageError, match="asymmetric weights"):
        prepare_qat(model, Quantize(bits=4, activations=None).plan(model), learned=True)
    with pytest.raises(UsageError, match="names modules"):
        prepare_qat(model, Quantize(bits=32).plan(model))
    with pytest.raises(UsageError, match="prepare_qat first"):
        finish_qat(model)
    prepare_qat(model, plan)
    with pytest.raises(ArtifactError, match="expects a Linear"):
        prepare_qat(model, plan)
