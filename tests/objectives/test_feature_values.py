"""Feature objectives against plain loops over the formula, in float64: value and gradient."""

import itertools
import math

import numpy
import pytest
import torch
from agreement import agree, draw
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import (
    AttentionTransfer,
    MarginHint,
    NeuronSelectivity,
    NormDirection,
    ReviewHints,
    SingularHints,
    VariationalHint,
)
from limbeck.objectives.features.activations import activation_map
from limbeck.objectives.features.margins import negative_mean
from limbeck.objectives.features.review import hierarchical_distance
from limbeck.objectives.features.singular import principal
from limbeck.signals import Signals

WEIGHT = torch.tensor([1.0, 2.0, 0.5])


def weighted(losses, w=WEIGHT):
    return sum(wi * li for wi, li in zip(w.tolist(), losses)) / float(w.sum())


def unit(v):
    return v / v.square().sum().sqrt()


@pytest.mark.parametrize("statistic", ["sum", "max"])
@pytest.mark.parametrize("loss", ["norm", "mse"])
@pytest.mark.parametrize("power", [2.0, 3.0])
def test_attention_transfer(statistic, loss, power):
    def attention(feature):  # (C, H, W)
        strength = [[abs(feature[c, y, x]) ** power for c in range(len(feature))] for y in range(2) for x in range(2)]
        return unit(torch.stack([sum(s) if statistic == "sum" else max(s) for s in strength]))

    def reference(s, t):
        gaps = [attention(a) - attention(b) for a, b in zip(s, t)]
        return weighted([g.square().sum().sqrt() if loss == "norm" else g.square().sum() / 4 for g in gaps])

    objective = AttentionTransfer("a", power=power, statistic=statistic, loss=loss)
    agree(objective, draw(3, 3, 2, 2), draw(3, 5, 2, 2), {"sample_weight": WEIGHT}, reference, "a")


def test_attention_of_the_sum_is_neuron_selectivity_with_the_linear_kernel_on_one_channel():
    s, t = draw(3, 1, 4, 4).abs(), draw(3, 1, 4, 4, seed=5).abs()
    signals = Signals({"a": s}), Signals({"a": t})
    linear = NeuronSelectivity("a", degree=1)(*signals, {}).value
    squares = AttentionTransfer("a", power=1.0, loss="mse")(*signals, {}).value * 16
    torch.testing.assert_close(linear, squares)


def test_a_place_without_activity_and_sizes_that_differ():
    assert float(activation_map(torch.zeros(1, 2, 3)).abs().max()) == 0
    large, small = draw(2, 3, 4, 4), draw(2, 3, 2, 2)
    pooled = large.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    values = [AttentionTransfer("a")(Signals({"a": x}), Signals({"a": small}), {}).value for x in (large, pooled)]
    torch.testing.assert_close(*values)
    for objective in (AttentionTransfer("a"), NeuronSelectivity("a")):
        with pytest.raises(UsageError, match="places"):
            objective(Signals({"a": draw(3, 4)}), Signals({"a": draw(3, 4)}), {})


@pytest.mark.parametrize(("degree", "offset"), [(2, 0.0), (1, 0.0), (3, 0.5)])
def test_neuron_selectivity(degree, offset):
    def discrepancy(s, t):
        s, t = [unit(c.flatten()) for c in s], [unit(c.flatten()) for c in t]

        def mean(a, b):
            return sum(((x * y).sum() + offset) ** degree for x in a for y in b) / (len(a) * len(b))

        return mean(t, t) + mean(s, s) - 2 * mean(s, t)

    def reference(s, t):
        return weighted([discrepancy(a, b) for a, b in zip(s, t)])

    objective = NeuronSelectivity("a", degree=degree, offset=offset)
    agree(objective, draw(3, 3, 2, 2), draw(3, 5, 2, 2), {"sample_weight": WEIGHT}, reference, "a")


def test_variational_hint():
    objective = VariationalHint("a", variance=2.0)
    s, t = draw(3, 2, 2, 2), draw(3, 4, 2, 2)
    made = objective.connectors(Signals({"a": s}), Signals({"a": t}))
    layers = [(m.weight.detach().double()[:, :, 0, 0], m.bias.detach().double()) for m in made["projector"][::2]]
    variances = [2.0, 0.5, 1.0, 3.0]
    with torch.no_grad():
        made["spread"].raw.copy_(torch.tensor([math.log(math.expm1(v - 1e-5)) for v in variances]))

    def reference(s, t):
        losses = []
        for example, target in zip(s, t):
            total = 0
            for y in range(2):
                for x in range(2):
                    h = example[:, y, x]
                    for at, (w, b) in enumerate(layers):
                        h = w @ h + b
                        h = h.clamp(min=0) if at < 2 else h
                    for c, v in enumerate(variances):
                        total = total + (target[c, y, x] - h[c]) ** 2 / (2 * v) + 0.5 * math.log(v)
            losses.append(total / 16)
        return weighted(losses)

    agree(objective, s, t, {"sample_weight": WEIGHT}, reference, "a", made)
    start = objective.connectors(Signals({"a": s}), Signals({"a": t}))["spread"].raw
    torch.testing.assert_close(F.softplus(start), torch.full((4,), 2.0))
    with pytest.raises(UsageError, match="hand over"):
        objective(Signals({"a": s}), Signals({"a": t}), {})


def test_the_margin_is_the_mean_of_the_negative_part():
    draws = numpy.random.default_rng(0).normal(0.7, 1.3, 400_000)
    expected = draws[draws < 0].mean()
    assert float(negative_mean(torch.tensor(0.7), torch.tensor(1.3))) == pytest.approx(expected, abs=5e-3)
    assert float(negative_mean(torch.tensor(8.0), torch.tensor(2.0))) == -6.0
    assert float(negative_mean(torch.tensor(1.0), torch.tensor(0.0))) == 0.0


def test_margin_hint():
    objective = MarginHint("a", "b", norm="bn")
    s, t = draw(3, 2, 2, 2), draw(3, 3, 2, 2)
    scale, shift = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, -1.0, 4.0])
    statistics = {"bn:weight": scale, "bn:bias": shift}
    made = objective.connectors(Signals({"a": s}), Signals({"b": t} | statistics))
    kernel = made["projector"][0].weight.detach().double()[:, :, 0, 0]
    normal = torch.distributions.Normal(0.0, 1.0)
    margins = []
    for g, b in zip(scale.abs().double(), shift.double()):
        below = float(normal.cdf(-b / g))
        margins.append(float(b - g * normal.log_prob(b / g).exp() / below) if below > 0.001 else float(-3 * g))
    assert margins[2] == -1.5

    def reference(s, t):
        r = torch.einsum("oc,bcyx->boyx", kernel, s["a"])
        r = (r - r.mean((0, 2, 3), keepdim=True)) / (
            r.var((0, 2, 3), unbiased=False, keepdim=True) + made["projector"][1].eps
        ).sqrt()
        losses = []
        for i in range(3):
            total = 0
            for c in range(3):
                for x, y in zip(r[i, c].flatten(), t["b"][i, c].flatten()):
                    y = max(float(y), margins[c])
                    total = total + (0 if float(x) <= y <= 0 else (x - y) ** 2)
            losses.append(total / 12)
        return weighted(losses)

    agree(objective, {"a": s}, {"b": t}, {"sample_weight": WEIGHT}, reference, connectors=made, constants=statistics)
    with pytest.raises(UsageError, match="statistics"):
        wrong = {"b": t, "bn:weight": torch.ones(2), "bn:bias": torch.zeros(2)}
        objective(Signals({"a": s}), Signals(wrong), {}, made)


def test_principal_directions_are_those_of_the_decomposition_with_their_gradient():
    x = draw(2, 6, 4).double().requires_grad_()
    vectors, values = principal(x, 2)
    _, s, vh = torch.linalg.svd(x)
    torch.testing.assert_close(values, s[:, :2].detach())
    signs = (vectors * vh[:, :2].transpose(1, 2)).sum(1, keepdim=True).sign().detach()
    torch.testing.assert_close(vectors, vh[:, :2].transpose(1, 2) * signs)
    probe = draw(2, 4, 2, seed=3).double()
    (ours,) = torch.autograd.grad((vectors * probe).sum(), x, retain_graph=True)
    (theirs,) = torch.autograd.grad((vh[:, :2].transpose(1, 2) * signs * probe).sum(), x)
    torch.testing.assert_close(ours, theirs)


def test_equal_singular_values_give_no_infinite_gradient():
    x = torch.eye(4).expand(1, 4, 4).clone().requires_grad_()
    vectors, _ = principal(x, 1)
    vectors.sum().backward()
    assert float(x.grad.abs().max()) == 0


def test_singular_hints():
    def leading(m, k):  # rows: places; a singular value decomposition, one example
        _, s, vh = torch.linalg.svd(m, full_matrices=False)
        return vh[:k], s[:k]

    def aligned(s, t):
        (theirs, values), (candidates, _) = leading(t, 1), leading(s, 2)
        theirs = theirs[0] * (1 if float(theirs[0].sum()) > 0 else -1)
        best = max(candidates, key=lambda v: abs(float(v @ theirs)))
        return best * (1 if float(best @ theirs) > 0 else -1), theirs, values

    def kernel(f, b):
        return torch.stack([torch.stack([torch.exp(-((x - y) ** 2) / 8) for y in b]) for x in f])

    def reference(s, t):
        losses = []
        for i in range(3):
            places = [(s[n][i].flatten(1).T, t[n][i].flatten(1).T) for n in ("a", "b", "c")]
            pairs = [aligned(*pair)[:2] for pair in places]
            losses.append(
                sum(
                    0.5 * (kernel(f[0], b[0]) - kernel(f[1], b[1])).square().sum() for f, b in itertools.pairwise(pairs)
                )
            )
        return weighted(losses)

    student = {"a": draw(3, 3, 4, 4), "b": draw(3, 4, 2, 2), "c": draw(3, 2, 3, 3)}
    teacher = {name: draw(*x.shape, seed=7) for name, x in student.items()}
    agree(SingularHints(("a", "b", "c")), student, teacher, {"sample_weight": WEIGHT}, reference)
    with pytest.raises(UsageError, match="as many channels"):
        SingularHints(("a", "b"))(Signals(student), Signals(teacher | {"a": draw(3, 4, 4, 4)}), {})


def test_hierarchical_distance():
    x, y = draw(2, 3, 8, 8).double(), draw(2, 3, 8, 8, seed=1).double()
    total, mass = (x - y).square().mean((1, 2, 3)), 1.0
    for k, size in enumerate((4, 2, 1), 1):
        side = 8 // size
        a, b = (z.unflatten(3, (size, side)).unflatten(2, (size, side)).mean((3, 5)) for z in (x, y))
        total, mass = total + 0.5**k * (a - b).square().mean((1, 2, 3)), mass + 0.5**k
    torch.testing.assert_close(hierarchical_distance(x, y), total / mass)
    one = hierarchical_distance(x[:, :, :1, :1], y[:, :, :1, :1])
    torch.testing.assert_close(one, (x - y)[:, :, 0, 0].square().mean(1))


def test_review_hints():
    objective = ReviewHints(("a", "b", "c"), ("x", "y", "z"), width=4)
    student = {"a": draw(3, 2, 4, 4), "b": draw(3, 3, 2, 2), "c": draw(3, 5)}
    teacher = {"x": draw(3, 3, 8, 8), "y": draw(3, 2, 2, 2), "z": draw(3, 4)}
    made = objective.connectors(Signals(student), Signals(teacher))
    state = {k: {n: p.detach().double() for n, p in m.named_parameters()} for k, m in made.items()}

    def norm(x, weight, bias):
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]

    def nearest(x, size):
        rows = [int(i * x.shape[2] / size[0]) for i in range(size[0])]
        columns = [int(i * x.shape[3] / size[1]) for i in range(size[1])]
        return x[:, :, rows][:, :, :, columns]

    def reference(s, t):
        maps = [s["a"], s["b"], s["c"][:, :, None, None]]
        goals = [t["x"], t["y"], t["z"][:, :, None, None]]
        total, below = 0, None
        for i in (2, 1, 0):
            p = state[f"fusion{i}"]
            x = torch.einsum("oc,bcyx->boyx", p["inner.0.weight"][:, :, 0, 0], maps[i])
            x = norm(x, p["inner.1.weight"], p["inner.1.bias"])
            if below is not None:
                y = nearest(below, x.shape[2:])
                both = torch.cat([x, y], 1)
                z = torch.einsum("oc,bcyx->boyx", p["attention.weight"][:, :, 0, 0], both)
                z = 1 / (1 + torch.exp(-(z + p["attention.bias"][:, None, None])))
                x = x * z[:, 0:1] + y * z[:, 1:2]
            below = nearest(x, goals[i].shape[2:])
            out = norm(F.conv2d(below, p["outer.0.weight"], padding=1), p["outer.1.weight"], p["outer.1.bias"])
            total = total + hierarchical_distance(out, goals[i])
        return weighted(total)

    agree(objective, student, teacher, {"sample_weight": WEIGHT}, reference, connectors=made)
    assert ReviewHints(("a", "b")).connectors(Signals(student), Signals(student))["fusion0"].inner[0].out_channels == 3


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("average", ["examples", "classes"])
def test_norm_and_direction(norm, average):
    s, t, means = draw(4, 3), draw(4, 3, seed=1), draw(4, 3, seed=2)
    s[0] *= 9  # longer than the teacher's
    labels, weight = torch.tensor([0, 1, 1, 0]), torch.tensor([1.0, 2.0, 0.5, 1.0])

    def reference(s, t):
        losses = []
        for a, b, c in zip(s, t, means.double()):
            length = a.square().sum().sqrt()
            if norm:
                length = max(length, b.square().sum().sqrt())
            losses.append(1 - (a * unit(c)).sum() / length)
        if average == "examples":
            return weighted(losses, weight)
        groups = [[i for i in range(4) if labels[i] == y] for y in (0, 1)]
        return sum(weighted([losses[i] for i in g], weight[g]) for g in groups) / 2

    batch = {"labels": labels, "sample_weight": weight}
    agree(NormDirection("a", norm=norm, average=average), s, t, batch, reference, "a", constants={"class_mean": means})


def test_norm_and_direction_through_a_projector_needs_means_of_the_same_signal():
    objective = NormDirection("a")
    signals = Signals({"a": draw(4, 2)}), Signals({"a": draw(4, 3), "class_mean": draw(4, 3)})
    made = objective.connectors(*signals)
    projected = made["projector"](signals[0]["a"])
    alone = objective(Signals({"a": projected}), signals[1], {}).value
    torch.testing.assert_close(objective(*signals, {}, made).value, alone)
    with pytest.raises(UsageError, match="same signal"):
        objective.connectors(signals[0], Signals({"a": draw(4, 3), "class_mean": draw(4, 2)}))
