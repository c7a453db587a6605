"""GPTQ against a naive re-computation in float64: one column at a time, the inverse Hessian of the free columns kept explicitly."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.plan import Plan, apply
from limbeck.quantization import GPTQ, IntegerGrid, PerChannel, PerGroup, PerTensor, Quantize, Quantizer, named
from limbeck.quantization.gptq import gptq, reversed_factor
from limbeck.quantization.hessian import output_error
from limbeck.signals import call, first_tensor
from limbeck.vocabulary import construct, describe


def naive(weight, hessian, quantizer, damping, act_order, static):
    """Optimal brain quantization in a fixed order: after each column the free ones move by the inverse Hessian, whose row and
    column are then eliminated. Returns the dequantized weight, float64."""
    weight, columns = weight.double().clone(), weight.shape[1]
    hessian = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True, stable=True).tolist() if act_order else list(range(columns))
    scale, zero = quantizer.parameters(weight.float())
    size = quantizer.granularity.size if isinstance(quantizer.granularity, PerGroup) else None
    free, out = list(order), torch.zeros_like(weight)
    inverse = torch.linalg.inv(hessian[order][:, order])
    for column in order:
        if size and not static and column % size == 0:
            s, z = quantizer.parameters(weight[:, column : column + size].float())
            scale[:, column // size], zero[:, column // size] = s.reshape(-1), z.reshape(-1)
        s = scale[:, column // size] if size else scale
        z = zero[:, column // size] if size else zero
        codes = torch.round(weight[:, column].float() / s.float()) + z
        out[:, column] = (codes.clamp(quantizer.grid.low, quantizer.grid.high) - z) * s.double()
        error = (weight[:, column] - out[:, column]) / inverse[0, 0]
        weight[:, free] -= error[:, None] * inverse[0]
        inverse = inverse[1:, 1:] - inverse[1:, :1] @ inverse[:1, 1:] / inverse[0, 0]
        free = free[1:]
    return out


def layer(rows=24, columns=50, seed=0, samples=80):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator) * 2
    x = torch.randn(samples, columns, generator=generator) @ mix
    hessian = 2 / samples * x.T @ x
    return torch.randn(rows, columns, generator=generator), (hessian + hessian.T) / 2


def decoded(quantizer, codes, scale, zero):
    return quantizer.decode(quantizer.pack(codes, scale, zero))


GRANULARITIES = {"channel": PerChannel(0), "tensor": PerTensor(), "groups": PerGroup(8)}


@pytest.mark.parametrize("act_order", [True, False], ids=["act_order", "stored_order"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_equals_the_naive_computation(granularity, symmetric, act_order):
    weight, hessian = layer()
    quantizer = Quantizer(IntegerGrid(3, signed=symmetric, symmetric=symmetric), GRANULARITIES[granularity])
    found = decoded(quantizer, *gptq(weight, hessian.double(), quantizer, 0.02, act_order, True))
    torch.testing.assert_close(
        found.double(), naive(weight, hessian, quantizer, 0.02, act_order, True), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_groups_whose_scales_follow_the_moving_weights_equal_the_naive_computation(size, method):
    weight, hessian = layer(columns=44)
    quantizer = Quantizer(IntegerGrid(3, False, False), PerGroup(size), method)
    for block in (1, 4, 32):
        codes, scale, zero = gptq(weight, hessian.double(), quantizer, 0.01, False, False, block)
        expected = naive(weight, hessian, quantizer, 0.01, False, False)
        torch.testing.assert_close(decoded(quantizer, codes, scale, zero).double(), expected, rtol=1e-5, atol=1e-5)


def test_the_factor_is_the_inverse_of_the_cholesky_factor_of_the_inverse():
    _, hessian = layer()
    hessian = hessian.double()
    factor = reversed_factor(hessian, torch.arange(len(hessian)), 0.01)
    regular = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.T, regular)
    upper = torch.linalg.cholesky(torch.linalg.inv(regular), upper=True)
    torch.testing.assert_close(torch.linalg.inv(factor), upper, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("settings", [{}, {"act_order": False}, {"act_order": False, "static_groups": True}])
def test_with_an_identity_hessian_it_is_rounding_to_the_nearest(granularity, settings):
    weight, _ = layer()
    quantizer = Quantizer(IntegerGrid(4, False, False), GRANULARITIES[granularity], scale_type="bfloat16")
    found = GPTQ(**settings).layer(weight, torch.eye(50)[None], quantizer)
    nearest = quantizer.encode(weight)
    assert torch.equal(found.codes, nearest.codes) and torch.equal(found.scale, nearest.scale)
    assert torch.equal(found.zero_point, nearest.zero_point)


@pytest.mark.parametrize("grid", ["affine", "nf4", "ternary", "fp4", "power_of_two"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_other_grids_whose_codes_are_numbers(grid, granularity):
    weight, hessian = layer()
    made = named(grid, 4 if grid in ("affine", "power_of_two") else None)
    quantizer = Quantizer(made, GRANULARITIES[granularity], made.methods[0], "bfloat16")
    found, nearest = GPTQ().layer(weight, torch.eye(50)[None], quantizer), quantizer.encode(weight)
    for name, value in nearest.tensors.items():
        assert torch.equal(found.tensors[name], value), name
    better = quantizer.decode(GPTQ().layer(weight, hessian[None], quantizer)) - weight
    assert (
        output_error(better, hessian[None]).sum()
        < output_error(quantizer.decode(nearest) - weight, hessian[None]).sum()
    )


def test_grids_whose_codes_stand_for_several_weights_are_refused():
    made = named("kmeans", 4)
    with pytest.raises(UsageError, match="column by column"):
        GPTQ().layer(torch.randn(4, 8), torch.eye(8)[None], Quantizer(made, PerTensor(), made.methods[0]))


def test_blocks_change_nothing_and_errors_are_below_those_of_the_nearest():
    weight, hessian = layer(64, 96, samples=200)
    quantizer = Quantizer(IntegerGrid(3, False, False), PerGroup(32))
    found = [gptq(weight, hessian.double(), quantizer, block=block)[0] for block in (1, 7, 32, 200)]
    assert all(torch.equal(codes, found[0]) for codes in found)
    nearest = quantizer.decode(quantizer.encode(weight))
    best = quantizer.decode(GPTQ().layer(weight, hessian[None], quantizer))
    assert output_error(best - weight, hessian[None]).sum() < 0.6 * output_error(nearest - weight, hessian[None]).sum()


def test_float32_and_float64_give_nearly_the_same_codes():
    weight, hessian = layer(64, 96, samples=400)
    quantizer = Quantizer(IntegerGrid(4), PerChannel(0))
    single, double = (gptq(weight, hessian.to(kind), quantizer)[0] for kind in (torch.float32, torch.float64))
    assert (single != double).float().mean() < 0.01


def test_inputs_that_never_fire_are_rounded_to_the_nearest():
    weight, hessian = layer()
    hessian[5], hessian[:, 5] = 0, 0
    quantizer = Quantizer(IntegerGrid(4), PerChannel(0))
    codes, scale, _ = gptq(weight, hessian, quantizer)
    assert torch.equal(codes[:, 5], torch.round(weight[:, 5] / scale).clamp(-7, 7).to(torch.int8))
    assert torch.equal(gptq(weight, torch.zeros(50, 50), quantizer)[0], quantizer.codes(quantizer.encode(weight)))


def test_a_hessian_that_is_no_hessian_is_refused():
    with pytest.raises(DataError, match="not positive definite"):
        gptq(torch.randn(4, 6), -torch.eye(6), Quantizer())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_group_of_a_convolution_reads_its_own_inputs(granularity):
    torch.manual_seed(0)
    weight, quantizer = torch.randn(12, 18), Quantizer(IntegerGrid(3, False, False), GRANULARITIES[granularity])
    hessians = torch.stack([layer(columns=18, seed=seed)[1] for seed in range(3)])
    found = quantizer.decode(GPTQ(hessian_type="float64").layer(weight, hessians.double(), quantizer))
    if granularity == "tensor":
        scale, zero = quantizer.parameters(weight)
        parts = [gptq(w, h.double(), quantizer, parameters=(scale, zero))[0] for w, h in zip(weight.chunk(3), hessians)]
        expected = (torch.cat(parts).float() - zero) * scale
    else:
        expected = torch.cat([naive(w, h, quantizer, 0.01, True, True) for w, h in zip(weight.chunk(3), hessians)])
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-6)


class Numbers:
    """As much of a task as calibration reads."""

    def __init__(self, *shape, count=64):
        self.x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5)) @ torch.randn(
            shape[-1], shape[-1], generator=torch.Generator().manual_seed(6)
        )

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        for start in range(0, min(len(self.x), limit or len(self.x)), batch_size):
            yield {"pixel_values": self.x[start : start + batch_size]}


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 6)).eval()


def test_quantize_takes_it_by_name_or_as_an_object_and_its_plan_replays():
    model, task = perceptron(), Numbers(32)
    transform = Quantize(bits=3, weights=16, activations=None, rounding="gptq")
    plan = transform.plan(model, task)
    assert plan == Quantize(bits=3, weights=16, activations=None, rounding=GPTQ()).plan(model, task)
    assert plan.decisions["rounding"] == {"class": "GPTQ"} and set(plan.decisions["data"]["weights"]) == {"0", "2", "4"}
    rounded = apply(copy.deepcopy(model), Plan.from_json(plan.to_json()))
    nearest = apply(copy.deepcopy(model), Quantize(bits=3, weights=16, activations=None).plan(model))
    with torch.no_grad():
        expected = model(task.x)
        errors = [(m(task.x) - expected).square().mean() for m in (rounded, nearest)]
    assert errors[0] < 0.7 * errors[1]
    empty = apply(copy.deepcopy(model), plan.lean())
    assert not torch.isfinite(first_tensor(call(empty, {"x": task.x}))).any(), "without its weights it must not pass"
    empty.load_state_dict(rounded.state_dict())
    assert torch.equal(empty(task.x), rounded(task.x))


def test_recipes_name_it():
    step = {"bits": 4, "weights": 64, "activations": None, "rounding": {"class": "GPTQ", "damping": 0.05}}
    made = construct({"class": "Quantize", **step}, "transform")
    assert made.rounding == GPTQ(damping=0.05)
    assert construct(describe(made), "transform") == made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["0"].update(codes="!"), "damaged"),
        (lambda d: d["0"].update(codes=d["4"]["codes"]), "damaged"),
        (lambda d: d["0"].pop("scale"), "damaged"),
        (lambda d: d["0"].update(scale=d["0"]["scale"][:-4] + "AAA="), "damaged"),
        (lambda d: d.pop("0"), "lack '0'"),
    ],
)
def test_data_that_do_not_fit_are_refused(change, words):
    model, task = perceptron(), Numbers(32)
    plan = Quantize(bits=3, weights=16, activations=None, rounding="gptq").plan(model, task).to_json()
    change(plan["decisions"]["data"]["weights"])
    with pytest.raises(ArtifactError, match=words):
        apply(model, Plan.from_json(plan))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GPTQ(damping=0), "damping=0"),
        (lambda: GPTQ(block=0), "block=0"),
        (lambda: GPTQ(static_groups=False), "static_groups=False"),
        (lambda: GPTQ(hessian_type="float16"), "hessian_type='float16'"),
        (lambda: Quantize(rounding="gtpq"), "gptq"),
    ],
)
def test_settings_that_cannot_be_right(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_it_needs_a_task():
    with pytest.raises(UsageError, match="no task was given"):
        Quantize(bits=4, activations=None, rounding="gptq").plan(perceptron())


class Attention(nn.Module):
    """Queries and keys read the same tensor; where `stray` is set, not at the second call."""

    def __init__(self, stray):
        super().__init__()
        torch.manual_seed(0)
        self.stray, self.query, self.key = stray, nn.Linear(8, 4), nn.Linear(8, 6)

    def forward(self, x):
        again = x * 0.5
        first = self.query(x).sum() + self.key(x).sum()
        return first + self.query(again).sum() + self.key(again + 1 if self.stray else again).sum()


@pytest.mark.parametrize("stray", [False, True])
@pytest.mark.parametrize("weights", ["channel", "tensor"])
def test_layers_that_read_the_same_are_solved_together_and_each_as_if_alone(stray, weights):
    model, task = Attention(stray).eval(), Numbers(8)
    transform = Quantize(bits=3, weights=weights, activations=None, rounding=GPTQ(hessian_type="float64"))
    plan = transform.plan(model, task)
    rounded = apply(copy.deepcopy(model), plan)
    for path, own in (("query", task.x * 0.5), ("key", task.x * 0.5 + stray)):
        x = torch.cat([task.x, own]).double()
        quantizer, weight = transform.specification.quantizer, model.get_submodule(path).weight.detach()
        expected = decoded(quantizer, *gptq(weight, x.T @ x / len(task.x), quantizer))
        assert torch.equal(rounded.get_submodule(path).weight, expected)


def test_experts_that_no_token_reached_are_rounded_to_the_nearest():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    transform = Quantize(bits=3, activations=None, rounding="gptq")
    rounded = apply(copy.deepcopy(model), transform.plan(model, Numbers(8)))
    quantizer, weight = transform.specification.quantizer, model.unused.weight.detach()
    assert torch.equal(rounded.unused.weight, quantizer.decode(quantizer.encode(weight)))
