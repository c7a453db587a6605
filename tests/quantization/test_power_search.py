"""Power exponents, searched and learned, against loops written out anew."""

import itertools
import json
import math

import pytest
import rounding_examples
import torch

from limbeck.errors import ArtifactError, UsageError
from limbeck.models import vit
from limbeck.plan import Plan, apply
from limbeck.quantization import (
    IntegerGrid,
    Packed,
    PerChannel,
    PerGroup,
    PerTensor,
    PowerGrid,
    PowerSearch,
    Quantize,
    Quantizer,
    SearchedPowerGrid,
    TernaryGrid,
    shared_exponent,
)
from limbeck.quantization.hessian import output_error
from limbeck.quantization.power_grid import nearest_levels, power, power_levels
from limbeck.quantization.power_search import PowerForm, fraction_penalty

GRID = SearchedPowerGrid(3)


def layer(rows=6, columns=20, seed=0):
    weight, hessian = rounding_examples.layer(rows, columns, seed)
    return weight, ((hessian + hessian.T) / 2)[None]


def total(q, packed, weight, hessian):
    return float(output_error(q.decode(packed) - weight, hessian).sum())


def test_a_power_keeps_products():
    """A product of two quantized numbers is the product of their whole numbers under one power."""
    a, scales = 0.4, (0.7, 1.9)
    x, y = (torch.randint(-7, 8, (50,)).float() for _ in range(2))
    values = [s * power(q / 7, 1 / a) for q, s in zip((x, y), scales)]
    torch.testing.assert_close(values[0] * values[1], scales[0] * scales[1] * power(x * y / 49, 1 / a))
    torch.testing.assert_close(power(values[0] * values[1], a), power(values[0], a) * power(values[1], a))


def test_exponent_one_is_the_uniform_grid():
    x = layer()[0]
    for granularity in (PerTensor(), PerChannel(0), PerGroup(8)):
        uniform = Quantizer(IntegerGrid(4), granularity)
        made = Quantizer(SearchedPowerGrid(4, 1.0, 1.0, 1), granularity)
        torch.testing.assert_close(made.decode(made.encode(x)), uniform.decode(uniform.encode(x)))


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_each_row_has_the_exponent_that_trying_them_all_finds(method):
    x = layer(5, 40)[0]
    q = Quantizer(SearchedPowerGrid(3, 0.3, 1.0, 8), PerChannel(0), method)
    packed = q.encode(x)
    for row in range(5):
        trials = {}
        for value in [0.3 + 0.1 * k for k in range(8)]:
            other = Quantizer(PowerGrid(3, value), PerTensor(), method)
            trials[value] = float((other.decode(other.encode(x[row])) - x[row]).square().sum())
        assert float(packed.zero_point[row]) == pytest.approx(min(trials, key=trials.get), abs=1e-5)
        assert float((q.decode(packed)[row] - x[row]).square().sum()) == pytest.approx(min(trials.values()), rel=1e-4)
    assert len(set(packed.zero_point.tolist())) > 1


def test_levels_and_their_slopes():
    a = torch.tensor([0.5, 0.8], dtype=torch.float32)
    levels, slopes = power_levels(a, 3)
    for row, value in enumerate(a.tolist()):
        for column, k in enumerate(range(-3, 4)):
            at = lambda e, k=k: math.copysign(abs(k / 3) ** (1 / e), k)  # noqa: E731
            assert float(levels[row, column]) == pytest.approx(at(value), abs=1e-6)
            expected = (at(value + 1e-5) - at(value - 1e-5)) / 2e-5 if k else 0.0
            assert float(slopes[row, column]) == pytest.approx(expected, abs=1e-5)
    assert nearest_levels(torch.tensor([[0.2, -0.9]]), torch.tensor([[-1.0, 0.0, 0.5]])).tolist() == [[1, 0]]


def test_one_exponent_for_several_tensors_is_the_best_of_many():
    weights = [layer(8, 30, seed)[0] ** 3 for seed in range(3)]
    found = shared_exponent(weights, 4, PerChannel(0))

    def error(value):
        q = Quantizer(PowerGrid(4, value), PerChannel(0))
        return sum(float((q.decode(q.encode(w)) - w).square().sum()) for w in weights)

    best = min((k / 20 for k in range(2, 41)), key=error)
    assert error(found) < 1.02 * error(best) and error(found) < error(1.0)


def test_the_penalty_of_fractions():
    c = torch.tensor([-1.25, 0.0, 0.3, 2.0, 4.6], dtype=torch.float64, requires_grad=True)
    found = fraction_penalty(c, 3.0)
    expected = sum(1 - abs(2 * (v - math.floor(v)) - 1) ** 3 for v in c.tolist())
    assert found.item() == pytest.approx(expected) and fraction_penalty(c.detach().round(), 2.0) == 0
    found.backward()
    for at, f in ((0, 0.75), (2, 0.3), (4, 0.6)):
        assert c.grad[at].item() == pytest.approx(-6 * (2 * f - 1) * abs(2 * f - 1), rel=1e-6)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(8)])
def test_the_learned_form_begins_at_the_weight_and_has_the_slopes_of_its_levels(granularity):
    weight, _ = layer()
    q = Quantizer(GRID, granularity)
    packed = q.encode(weight)
    form = PowerForm(weight, packed.scale, packed.zero_point, GRID, granularity)
    torch.testing.assert_close(form.values(form.position), weight, rtol=1e-4, atol=1e-5)
    whole = form.position.detach().round()
    torch.testing.assert_close(form.values(whole), q.decode(GRID.pack(whole, packed.scale, packed.zero_point)))

    draws = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    (form.values(form.position) * draws).sum().backward()

    def naive(exponent):
        """Interpolated levels, element by element."""
        size = {PerTensor(): 20 * 6, PerChannel(0): 20, PerGroup(8): 8}[granularity]
        found = 0.0
        for i, j in itertools.product(range(6), range(20)):
            at = {120: 0, 20: i, 8: i * 3 + j // 8}[size]
            a, s = exponent[at], packed.scale.flatten()[at].item()
            c = form.position[i, j].item()
            k = min(int(c), 5)
            low, high = (math.copysign(abs(n / 3) ** (1 / a), n) for n in (k - 3, k - 2))
            found += s * (low + (c - k) * (high - low)) * draws[i, j].item()
        return found

    exponents = form.exponent.detach().flatten().double().tolist()
    for at in range(0, len(exponents), 5):
        up, down = list(exponents), list(exponents)
        up[at], down[at] = up[at] + 1e-4, down[at] - 1e-4
        slope = (naive(up) - naive(down)) / 2e-4
        assert form.exponent.grad.flatten()[at].item() == pytest.approx(slope, rel=1e-3, abs=1e-3)
    below = form.position.detach().long().clamp(max=5).float()
    step = form.values(below + 1) - form.values(below)
    torch.testing.assert_close(form.position.grad, (step * draws).detach(), rtol=1e-4, atol=1e-5)


def test_codes_over_the_whole_grid_come_near_the_best_of_all():
    """Few weights: every combination of codes is tried."""
    weight, hessian = layer(4, 5, seed=4)
    q = Quantizer(GRID, PerChannel(0))
    start = q.encode(weight)
    every = torch.tensor(list(itertools.product(range(7), repeat=5)))
    packed = [GRID.pack(c.expand(4, 5), start.scale, start.zero_point) for c in every[::11]]
    errors = torch.stack([output_error(q.decode(p) - weight, hessian) for p in packed])
    assert len(packed) == 1528
    found = PowerSearch(exponent_rate=0.0).layer(weight, hessian, q)
    assert torch.equal(found.zero_point, start.zero_point)
    nearest = total(q, start, weight, hessian)
    best = float(errors.amin(0).sum())
    assert total(q, found, weight, hessian) <= best + 0.1 * (nearest - best)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerGroup(8)])
def test_learning_pays_and_is_never_worse(granularity):
    weight, hessian = layer(12, 24)
    q = Quantizer(GRID, granularity, scale_type="bfloat16")
    start = q.encode(weight)
    settings = {"iterations": 200, "learning_rate": 0.05}
    found = {
        "near": PowerSearch(**settings, exponent_rate=0.0, reach=1),
        "far": PowerSearch(**settings, exponent_rate=0.0),
        "learned": PowerSearch(**settings),
        "one step": PowerSearch(iterations=1, exponent_rate=0.5),
    }
    packed = {name: method.layer(weight, hessian, q) for name, method in found.items()}
    error = {name: total(q, value, weight, hessian) for name, value in packed.items()}
    nearest = total(q, start, weight, hessian)
    assert max(error["near"], error["far"], error["learned"]) < 0.9 * nearest
    assert error["one step"] <= nearest
    below = PowerForm(weight, start.scale, start.zero_point, GRID, granularity).position.detach().floor()
    away = GRID.codes(packed["near"]).float() - below
    assert ((away >= 0) & (away <= 1)).all()
    assert (packed["learned"].zero_point != start.zero_point).any()
    for value in packed.values():
        q.check(value)


def test_a_position_may_travel_over_all_codes_or_within_reach():
    """Trained towards another weight than it began with."""
    weight, hessian = layer(4, 10)[0], torch.eye(10)[None]
    q = Quantizer(GRID, PerChannel(0))
    packed = q.encode(weight)
    for reach in (None, 1, 2):
        form = PowerForm(weight, packed.scale, packed.zero_point, GRID, PerChannel(0))
        floor = form.position.detach().floor()
        method = PowerSearch(iterations=200, learning_rate=0.1, exponent_rate=0.0, penalty=0.0, reach=reach)
        method._train(form, -weight, hessian, torch.tensor(1.0))
        away = form.position.detach() - floor
        if reach is None:
            torch.testing.assert_close(form.values(form.position), -weight, rtol=0.2, atol=0.2)
        else:
            assert away.min() == 1 - reach and away.max() == reach
        assert form.position.min() >= 0 and form.position.max() <= 6


def test_a_row_that_wins_nothing_keeps_what_it_had():
    weight, hessian = layer(6, 24)
    q = Quantizer(GRID, PerChannel(0))
    start = q.encode(weight)
    found = PowerSearch(iterations=1, exponent_rate=0.5, learning_rate=1e-9).layer(weight, hessian, q)
    before, after = (output_error(q.decode(p) - weight, hessian) for p in (start, found))
    assert (after <= before).all()
    same = found.zero_point == start.zero_point
    assert same.any() and torch.equal(GRID.codes(found)[same], GRID.codes(start)[same])


class Task:
    def batches(self, split, batch_size, *, limit):
        generator = torch.Generator().manual_seed(0)
        for _ in range(limit // batch_size):
            yield {"pixel_values": torch.randn(batch_size, 1, 8, 8, generator=generator)}


def test_a_plan_holds_codes_and_exponents():
    model = vit(8, 4, 10, depth=1, width=16, heads=2, channels=1)
    rounding = PowerSearch(iterations=20)
    quantize = Quantize(bits=3, grid="searched_power", activations=None, rounding=rounding, examples=32)
    plan = quantize.plan(model, Task())
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    x = next(iter(Task().batches("train", 4, limit=4)))["pixel_values"]
    results = []
    for p in (plan, again):
        torch.manual_seed(0)
        made = vit(8, 4, 10, depth=1, width=16, heads=2, channels=1)
        made.load_state_dict(model.state_dict())
        results.append(apply(made, p)(x))
    assert torch.equal(*results) and torch.isfinite(results[0]).all()
    assert Quantize(bits=3, grid="searched_power", activations=None, rounding="nupes").rounding == "nupes"


def test_bad_settings_and_damaged_exponents_are_refused():
    for settings in ({"exponent_rate": -1.0}, {"reach": 0}, {"penalty": -1.0}, {"iterations": 0}, {"warmup": 1.0}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            PowerSearch(**settings)
    for settings in ({"lowest": 0.01}, {"highest": 3.0}, {"lowest": 0.9, "highest": 0.5}, {"count": 0}, {"bits": 1}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            SearchedPowerGrid(**settings)
    with pytest.raises(UsageError, match="searched_power"):
        PowerSearch().layer(torch.ones(2, 2), torch.eye(2)[None], Quantizer(TernaryGrid(), PerTensor(), "absmean"))
    q = Quantizer(GRID)
    packed = q.encode(torch.randn(4, 8))
    for value in (0.01, 5.0):
        with pytest.raises(ArtifactError, match="exponent"):
            q.check(Packed(**{**packed.__dict__, "zero_point": torch.tensor(value)}))
    with pytest.raises(ArtifactError, match="negative"):
        q.check(Packed(**{**packed.__dict__, "scale": -packed.scale}))
