"""Training on any grid: gradients in closed form and by finite differences, and the way to the packed model."""

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.plan import Plan, apply
from limbeck.quantization import Quantize, finish_qat, normalize_inputs, plain_kernels, prepare_qat
from limbeck.quantization.contract import Packed
from limbeck.quantization.grids import IntegerGrid, PerChannel, PerGroup, PerTensor, Quantizer
from limbeck.quantization.named_grids import named
from limbeck.quantization.quantization_aware import FakeQuantized
from limbeck.quantization.straight_through import fake_on_grid, pact, straight_through


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("name", ["ternary", "nf4", "fp4", "binary", "power_of_two"])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(4)], ids=str)
def test_gradients_of_level_grids_are_the_closed_forms(name, granularity):
    grid = named(name, 3 if name == "power_of_two" else None)
    q = Quantizer(grid, granularity, grid.methods[0])
    x = numbers(3, 8).requires_grad_()
    scale = (0.6 * q.encode(x).scale).requires_grad_()
    out = fake_on_grid(x, scale, q)
    packed = q.project(x, Packed(torch.zeros(0), scale.detach(), None, (3, 8)))
    assert torch.allclose(out, q.decode(packed), atol=1e-6)
    upstream = numbers(3, 8, seed=1)
    out.backward(upstream)
    to_x, to_scale = torch.zeros(3, 8), torch.zeros_like(scale)
    levels = grid.rising[0].tolist()
    for i in range(3):
        for j in range(8):
            key = {PerTensor: (), PerChannel: (i,), PerGroup: (i, j // 4)}[type(granularity)]
            ratio, g = x[i, j].item() / scale[key].item(), upstream[i, j].item()
            level = min(levels, key=lambda v: abs(v - ratio))
            inside = levels[0] <= ratio <= levels[-1]
            to_x[i, j] = g if inside else 0.0
            to_scale[key] += g * (level - ratio if inside else level)
    assert torch.allclose(x.grad, to_x, atol=1e-5)
    assert torch.allclose(scale.grad, to_scale, atol=1e-4)


@pytest.mark.parametrize("name", ["binaries", "dual_binary", "kmeans", "fourth_roots"])
def test_scales_and_centres_get_the_true_gradient_while_codes_stay(name):
    grid = named(name, None if name == "dual_binary" else 2)
    q = Quantizer(grid, PerTensor(), grid.methods[0])
    x = numbers(4, 8).requires_grad_()
    packed = q.encode(x)
    key = "codebook" if packed.codebook is not None else "scale"
    parameter = packed.tensors[key].clone().requires_grad_()
    out = fake_on_grid(x, parameter, q)
    assert torch.allclose(out, q.decode(packed), atol=1e-6)
    out.square().sum().backward()
    assert torch.allclose(x.grad, 2 * q.decode(packed), atol=1e-5)  # straight through
    for at in range(parameter.numel()):
        ends = []
        for step in (1e-3, -1e-3):
            moved = packed.tensors[key].clone()
            moved.view(-1)[at] += step
            ends.append(q.decode(Packed(**{**packed.__dict__, key: moved})).square().sum())
        assert parameter.grad.view(-1)[at].item() == pytest.approx(
            ((ends[0] - ends[1]) / 2e-3).item(), rel=2e-2, abs=2e-2
        )


def test_a_lattice_trains_its_step():
    q = Quantizer(named("e8", 2), PerTensor(), "mse")
    x = numbers(4, 16).requires_grad_()
    scale = q.encode(x).scale.clone().requires_grad_()
    out = fake_on_grid(x, scale, q)
    out.sum().backward()
    points = out.detach() / scale.detach()
    assert torch.allclose(x.grad, torch.ones(4, 16))
    assert scale.grad.item() == pytest.approx((points - x.detach() / scale.detach()).sum().item(), abs=1e-3)


def test_integers_go_the_same_way():
    q = Quantizer(IntegerGrid(4), PerChannel(0))
    x = numbers(3, 8)
    packed = q.encode(x)
    assert torch.equal(fake_on_grid(x, packed.scale, q), q.decode(packed))


def test_straight_through_has_exactly_the_value():
    x = torch.tensor([1e8, 1.0], requires_grad=True)
    found = straight_through(x, torch.tensor([0.1, 0.3]))
    found.sum().backward()
    assert found.tolist() == torch.tensor([0.1, 0.3]).tolist() and x.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("zero", [0, 5])
def test_learned_clipping_moves_by_what_is_clipped(zero):
    grid = IntegerGrid(4, False, False)
    x = torch.tensor([-9.0, -0.2, 0.4, 1.2, 2.9, 3.5, 40.0], requires_grad=True)
    upper = torch.tensor(3.0, requires_grad=True)
    out = pact(x, upper, zero, grid)
    scale = 3.0 / (15 - zero)
    codes = (x.detach() / scale).round() + zero
    assert torch.allclose(out, (codes.clamp(0, 15) - zero) * scale)
    upstream = torch.arange(1.0, 8.0)
    out.backward(upstream)
    inside = (codes >= 0) & (codes <= 15)
    assert torch.equal(x.grad, upstream * inside)
    expected = upstream[codes > 15].sum() - zero / (15 - zero) * upstream[codes < 0].sum()
    assert upper.grad.item() == pytest.approx(expected.item())


class Examples:
    def __init__(self):
        self.x = numbers(32, 16, seed=3)

    def batches(self, split, batch_size, *, limit=None, **_):
        yield {"pixel_values": self.x}


CHAINS = {
    "ternary": ({"grid": "ternary", "weights": "tensor", "activations": "dynamic"}, {}),
    "median": ({"grid": "ternary", "weights": "tensor", "method": "absmedian", "activations": "dynamic"}, {}),
    "twn": ({"grid": "ternary", "method": "twn", "activations": None}, {}),
    "ternary_mse": ({"grid": "ternary", "method": "mse", "activations": None}, {}),
    "ternary_learned": ({"grid": "ternary", "weights": 8, "activations": None}, {"learned": True}),
    "binary": ({"grid": "binary", "activations": None}, {}),
    "nf4_learned": ({"grid": "nf4", "weights": 8, "activations": None}, {"learned": True}),
    "binaries": ({"grid": "binaries", "bits": 2, "activations": None}, {"learned": True}),
    "dual": ({"grid": "dual_binary", "weights": 8, "activations": None}, {"learned": True}),
    "kmeans": ({"grid": "kmeans", "bits": 2, "weights": "tensor", "activations": None}, {"learned": True}),
    "e8": ({"grid": "e8", "bits": 2, "activations": None}, {"learned": True}),
    "fourth_roots": ({"grid": "fourth_roots", "bits": 2, "weights": "tensor", "activations": None}, {}),
    "affine_mse": ({"grid": "affine", "bits": 2, "method": "mse", "activations": None}, {}),
    "e8_mse": ({"grid": "e8", "bits": 3, "activations": None}, {}),
    "clip": ({"grid": "ternary", "activation_bits": 4}, {"learned": "clip"}),
    "clip_integers": ({"bits": 4, "activation_bits": 4}, {"learned": "clip"}),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_packed_model_computes_what_was_trained(chain):
    settings, options = CHAINS[chain]
    torch.manual_seed(0)
    task, model = Examples(), nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))
    plan = Quantize(**settings).plan(model, task)
    before = copy.deepcopy(model.state_dict())
    model = prepare_qat(model, plan, **options)
    target, optimizer = torch.arange(32) % 8, torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(task.x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]
    model.eval()
    with torch.no_grad():
        simulated = model(task.x)
    if options.get("learned") is True:
        assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if name.endswith("weight_scale"))
    model, final = finish_qat(model, task)
    assert not any(isinstance(module, FakeQuantized) for module in model.modules())
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    packed = apply(model, Plan.from_json(final.to_json())).eval()
    with torch.no_grad():
        with plain_kernels():
            plain = packed(task.x)
        fast = packed(task.x)
    assert (plain - simulated).abs().max() < 1e-4 * simulated.abs().max()
    assert (fast - simulated).abs().max() < 0.05 * simulated.abs().max()


def test_bitnets_layer_is_the_published_one():
    torch.manual_seed(0)
    model = normalize_inputs(nn.Sequential(nn.Linear(16, 4)))
    plan = Quantize(grid="ternary", weights="tensor", activations="dynamic").plan(model)
    weight, bias = model[0][1].weight, model[0][1].bias
    model = prepare_qat(model, plan)
    x = numbers(5, 16)
    out = model(x)
    normal = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    step = normal.abs().amax(1, keepdim=True) / 127
    mean = weight.abs().mean()
    ternary = (weight / mean).round().clamp(-1, 1)
    assert torch.allclose(out, (normal / step).round() @ ternary.T * mean * step + bias, atol=1e-5)
    out.sum().backward()
    expected = ((normal / step).round() * step).sum(0)
    assert torch.allclose(weight.grad, expected.expand(4, 16), atol=1e-4)  # nothing is clipped on the way to the weight


def test_the_factor_of_a_learned_step_counts_elements_and_positive_levels():
    model = nn.Sequential(nn.Linear(16, 4))
    model = prepare_qat(model, Quantize(grid="ternary", activations=None).plan(model), learned=True)
    assert model[0].step_factor == pytest.approx(1 / math.sqrt(16 * 1))
    model = nn.Sequential(nn.Linear(16, 4))
    model = prepare_qat(model, Quantize(grid="nf4", weights=8, activations=None).plan(model), learned=True)
    assert model[0].step_factor == pytest.approx(1 / math.sqrt(8 * 8))


def test_what_cannot_be_trained_is_refused():
    model, task = nn.Sequential(nn.Linear(16, 4)), Examples()
    with pytest.raises(UsageError, match="learned='all'"):
        prepare_qat(model, Quantize().plan(model, task), learned="all")
    with pytest.raises(UsageError, match="static inputs"):
        prepare_qat(model, Quantize(activations="dynamic").plan(model), learned="clip")
    with pytest.raises(UsageError, match="it has offsets"):
        prepare_qat(model, Quantize(grid="affine", bits=2, activations=None).plan(model), learned=True)
    with pytest.raises(UsageError, match="no linear layer"):
        normalize_inputs(nn.Sequential(nn.ReLU()))
