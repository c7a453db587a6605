"""Each divergence against its formula written out in plain Python floats, its gradient against differences, and its limits."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import (
    AdaptiveKL,
    CorrelationTargets,
    CrossEntropy,
    JensenShannon,
    ReverseKL,
    SkewKL,
    SoftTargets,
    Standardized,
    StandardizedTargets,
    SymmetricKL,
    TopKTargets,
    TotalVariation,
    TransformedTargets,
    WeightedSoftTargets,
)
from limbeck.signals import Signals

N, C = 5, 4


def softmax(z, t=1.0):
    e = [math.exp(x / t) for x in z]
    return [x / sum(e) for x in e]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def mix(p, q, a):
    return [a * x + (1 - a) * y for x, y in zip(p, q)]


def adaptive(p, q, mass=0.5):
    order = sorted(range(C), key=lambda i: -p[i])
    head, held = [], 0.0
    for i in order:
        if held < mass:
            head.append(i)
        held += p[i]
    gap = [abs(a - b) for a, b in zip(p, q)]
    inside = sum(gap[i] for i in head)
    w = inside / sum(gap)
    return w * kl(p, q) + (1 - w) * kl(q, p)


def split(p, q, k, head, rest, w):
    order = sorted(range(C), key=lambda i: -p[i])
    total = 0.0
    for rank, i in enumerate(order):
        a, b = (p[i], q[i]) if (head if rank < k else rest) == "forward" else (q[i], p[i])
        total += (1.0 if rank < k else w) * (a * math.log(a / b) - a + b)
    return total


def standard(z):
    mean = sum(z) / len(z)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in z) / len(z))
    return [(x - mean) / deviation for x in z]


def pearson(x, y):
    a, b = standard(x), standard(y)
    return sum(i * j for i, j in zip(a, b)) / len(x)


FORMULAS = {
    "reverse": (ReverseKL(2.0), lambda s, t, y: 4 * kl(softmax(s, 2), softmax(t, 2))),
    "symmetric": (
        SymmetricKL(2.0, forward=0.3),
        lambda s, t, y: 4 * (0.3 * kl(softmax(t, 2), softmax(s, 2)) + 0.7 * kl(softmax(s, 2), softmax(t, 2))),
    ),
    "jensen": (
        JensenShannon(3.0, beta=0.2),
        lambda s, t, y: (
            9
            * (
                0.2 * kl(softmax(t, 3), mix(softmax(t, 3), softmax(s, 3), 0.2))
                + 0.8 * kl(softmax(s, 3), mix(softmax(t, 3), softmax(s, 3), 0.2))
            )
        ),
    ),
    "skew": (SkewKL(skew=0.1), lambda s, t, y: kl(softmax(t), mix(softmax(t), softmax(s), 0.1))),
    "skew-reverse": (
        SkewKL(skew=0.1, direction="reverse"),
        lambda s, t, y: kl(softmax(s), mix(softmax(s), softmax(t), 0.1)),
    ),
    "variation": (
        TotalVariation(2.0),
        lambda s, t, y: 0.5 * sum(abs(a - b) for a, b in zip(softmax(s, 2), softmax(t, 2))),
    ),
    "adaptive": (AdaptiveKL(2.0), lambda s, t, y: 4 * adaptive(softmax(t, 2), softmax(s, 2))),
    "top-k": (
        TopKTargets(2.0, k=2, weight=0.3),
        lambda s, t, y: 4 * split(softmax(t, 2), softmax(s, 2), 2, "forward", "reverse", 0.3),
    ),
    "top-k-turned": (
        TopKTargets(k=1, head="reverse", rest="forward", weight=3.0),
        lambda s, t, y: split(softmax(t), softmax(s), 1, "reverse", "forward", 3.0),
    ),
    "standardized": (
        StandardizedTargets(2.0),
        lambda s, t, y: 4 * kl(softmax(standard(t), 2), softmax(standard(s), 2)),
    ),
    "transformed": (TransformedTargets(4.0), lambda s, t, y: kl(softmax(t, 4), softmax(s))),
    "transformed-weighted": (
        TransformedTargets(4.0, weighted=True),
        lambda s, t, y: sum(p**0.25 for p in softmax(t)) * kl(softmax(t, 4), softmax(s)),
    ),
    "weighted": (
        WeightedSoftTargets(2.0),
        lambda s, t, y: (
            (1 - math.exp(-math.log(softmax(s)[y]) / math.log(softmax(t)[y]) * 1.0))
            * 4
            * kl(softmax(t, 2), softmax(s, 2))
        ),
    ),
}


def logits(seed=0):
    draw = torch.Generator().manual_seed(seed)
    s, t = (2 * torch.randn(N, C, generator=draw, dtype=torch.double) for _ in range(2))
    return s, t, torch.randint(0, C, (N,), generator=draw)


def value(objective, s, t, y, **batch):
    return objective(Signals({"logits": s}), Signals({"logits": t}), {"labels": y, **batch}).value


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula(name):
    objective, formula = FORMULAS[name]
    s, t, y = logits()
    expected = sum(formula(*(row.tolist() for row in (s[n], t[n])), int(y[n])) for n in range(N)) / N
    assert float(value(objective, s, t, y)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [n for n in FORMULAS if n not in ("adaptive", "weighted")])
def test_gradient_is_that_of_the_formula(name):
    objective, _ = FORMULAS[name]
    s, t, y = logits(1)
    assert torch.autograd.gradcheck(lambda s: value(objective, s, t, y), (s.requires_grad_(),))


@pytest.mark.parametrize("name", ["adaptive", "weighted"])
def test_weights_carry_no_gradient(name):
    """The gradient is that of the divergences with the weights, which the formula gives, held fixed."""
    objective, _ = FORMULAS[name]
    s, t, y = logits(2)
    s.requires_grad_()
    got = torch.autograd.grad(value(objective, s, t, y), s)[0]
    q, p = (z.div(2).log_softmax(-1) for z in (s, t))
    forward, reverse = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
    if name == "adaptive":
        order = p.argsort(-1, descending=True)
        gaps = (p.exp() - q.exp()).abs().detach()
        w = torch.zeros(N, dtype=torch.double)
        for n in range(N):
            held = 0.0
            for i in order[n].tolist():
                w[n] += gaps[n, i] if held < 0.5 else 0.0
                held += float(p[n, i].exp())
        w = w / gaps.sum(-1)
        plain = 4 * (w * forward + (1 - w) * reverse).mean()
    else:
        own, other = (-z.log_softmax(-1).gather(-1, y[:, None])[:, 0] for z in (s.detach(), t))
        plain = 4 * ((1 - torch.exp(-own / other)) * forward).mean()
    assert torch.allclose(got, torch.autograd.grad(plain, s)[0], rtol=1e-9)


def test_limits_meet_the_known_divergences():
    s, t, y = logits(3)
    forward, reverse = (float(value(o, s, t, y)) for o in (SoftTargets(temperature=1.0), ReverseKL(1.0)))
    assert float(value(SkewKL(skew=0.0), s, t, y)) == pytest.approx(forward)
    assert float(value(SkewKL(skew=0.0, direction="reverse"), s, t, y)) == pytest.approx(reverse)
    assert float(value(JensenShannon(beta=1e-6), s, t, y)) / 1e-6 == pytest.approx(forward, rel=1e-4)
    assert float(value(JensenShannon(beta=1 - 1e-6), s, t, y)) / 1e-6 == pytest.approx(reverse, rel=1e-4)
    assert float(value(SymmetricKL(1.0, forward=1.0), s, t, y)) == pytest.approx(forward)
    assert float(value(TransformedTargets(1.0, weighted=True), s, t, y)) == pytest.approx(forward)


def test_a_split_of_one_direction_is_no_split():
    s, t, y = logits(3)
    for direction, whole in (("forward", SoftTargets(temperature=2.0)), ("reverse", ReverseKL(2.0))):
        cut = TopKTargets(2.0, k=2, head=direction, rest=direction)
        assert float(value(cut, s, t, y)) == pytest.approx(float(value(whole, s, t, y)), rel=1e-9)


def test_a_split_needs_a_rest():
    s, t, y = logits(3)
    with pytest.raises(UsageError, match="k=4 leaves no rest of 4 classes"):
        value(TopKTargets(k=4), s, t, y)


def test_bounds():
    far = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    y = torch.zeros(2, dtype=torch.long)
    assert float(value(JensenShannon(), far, far.flip(1), y)) == pytest.approx(math.log(2))
    assert float(value(TotalVariation(), far, far.flip(1), y)) == pytest.approx(1.0)


def test_standardized_ignores_size_and_shift():
    s, t, y = logits(4)
    assert float(value(StandardizedTargets(), 7 * s + 3, t, y)) == pytest.approx(
        float(value(StandardizedTargets(), s, t, y))
    )
    flat = torch.zeros(N, C, dtype=torch.double)
    assert math.isfinite(float(value(StandardizedTargets(), flat, t, y)))


def test_any_objective_on_standardized_logits():
    """The rescaled loss of mixup: labels and teacher at temperature 1, on logits divided by their deviation."""
    s, t, y = logits(8)
    found = value(Standardized(0.1 * CrossEntropy() + 0.9 * SoftTargets(temperature=1.0)), s, t, y)
    expected = 0.0
    for a, b, label in zip(s.tolist(), t.tolist(), y.tolist()):
        own, other = ([x / statistics.pstdev(z) for x in z] for z in (a, b))
        expected += (-0.1 * math.log(softmax(own)[label]) + 0.9 * kl(softmax(other), softmax(own))) / N
    assert float(found) == pytest.approx(expected, rel=1e-9)
    same = value(Standardized(SoftTargets(temperature=3.0)), s, t, y)
    assert float(same) == pytest.approx(float(value(StandardizedTargets(3.0), s, t, y)))
    wrapped = Standardized(CrossEntropy())
    assert torch.autograd.gradcheck(lambda s: value(wrapped, s, t, y), (s.requires_grad_(),))
    assert wrapped.name == "Standardized(CrossEntropy)"


def test_correlations_within_positions_and_within_classes():
    s, t, y = logits(5)
    p, q = ([softmax(row, 4) for row in z.tolist()] for z in (t, s))
    inter = sum(1 - pearson(a, b) for a, b in zip(p, q)) / N
    intra = sum(1 - pearson(a, b) for a, b in zip(zip(*p), zip(*q))) / C
    found = value(CorrelationTargets(2.0, 3.0, temperature=4.0), s, t, y)
    assert float(found) == pytest.approx(2 * inter + 3 * intra, rel=1e-9)
    assert torch.autograd.gradcheck(lambda s: value(CorrelationTargets(), s, t, y), (s.requires_grad_(),))


def test_correlation_is_blind_to_scale_of_the_teacher_and_counts_weights():
    s, t, y = logits(6)
    some = value(CorrelationTargets(), s[:3], t[:3], y[:3])
    weighted = value(CorrelationTargets(), s, t, y, sample_weight=torch.tensor([1.0, 1, 1, 0, 0]))
    assert float(some) == pytest.approx(float(weighted), rel=1e-6)
    flat = torch.zeros(N, C, dtype=torch.double)
    assert float(value(CorrelationTargets(), flat, t, y)) == 0.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: JensenShannon(beta=1.0), "SoftTargets and ReverseKL"),
        (lambda: SkewKL(skew=1.0), r"skew=1\.0"),
        (lambda: SkewKL(direction="both"), "direction"),
        (lambda: SymmetricKL(forward=1.5), "forward"),
        (lambda: AdaptiveKL(mass=0.0), "mass"),
        (lambda: ReverseKL(0.0), "temperature"),
        (lambda: TopKTargets(k=0), "k=0"),
        (lambda: TopKTargets(head="both"), "head"),
        (lambda: TopKTargets(rest="both"), "rest"),
        (lambda: TopKTargets(weight=0.0), "weight"),
        (lambda: CorrelationTargets(0.0, 0.0), "nothing to minimize"),
        (lambda: CorrelationTargets(-1.0), "inter"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(UsageError, match=words):
        make()
