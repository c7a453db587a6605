"""Deviation-aware distillation against the formula, computed number by number."""

import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import DeviationAware, SoftTargets
from limbeck.signals import Signals


def softmax(z, t):
    e = [math.exp(x / t) for x in z]
    return [x / sum(e) for x in e]


def value(objective, s, t):
    return objective(Signals({"logits": s}), Signals({"logits": t}), {}).value


def numbers():
    draw = torch.Generator().manual_seed(0)
    return (2 * torch.randn(5, 4, generator=draw, dtype=torch.double) for _ in range(2))


def weights(s, t, gamma, temperature):
    pairs = [(softmax(a, temperature), softmax(b, temperature)) for a, b in zip(t.tolist(), s.tolist())]
    return [sum(-x * math.log(x) for x in (*p, *q)) ** gamma for p, q in pairs], pairs


@pytest.mark.parametrize(("gamma", "temperature"), [(1.0, 1.0), (0.3, 2.0)])
def test_value_and_gradient(gamma, temperature):
    s, t = numbers()
    ambiguity, pairs = weights(s, t, gamma, temperature)
    divergences = [sum(a * math.log(a / b) for a, b in zip(p, q)) for p, q in pairs]
    expected = temperature**2 * sum(w * d for w, d in zip(ambiguity, divergences)) / 5
    found = value(DeviationAware(gamma, temperature), s.requires_grad_(), t)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    found.backward()
    for n, (w, (p, q)) in enumerate(zip(ambiguity, pairs)):  # the weight itself has no gradient
        slope = [temperature * w * (b - a) / 5 for a, b in zip(p, q)]
        assert s.grad[n].tolist() == pytest.approx(slope, abs=1e-6)


def test_a_power_near_zero_is_soft_targets():
    s, t = numbers()
    assert float(value(DeviationAware(1e-9, 2.0), s, t)) == pytest.approx(
        float(value(SoftTargets(2.0), s, t)), rel=1e-6
    )


def test_certain_positions_of_extreme_logits_are_finite():
    s, t = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True), torch.tensor([[1e4, -1e4, 0.0]])
    found = value(DeviationAware(0.5), s, t)
    found.backward()
    assert float(found) == 0 and bool(s.grad.isfinite().all())


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"gamma": -1.0}, {"temperature": 0.0}])
def test_refusals(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        DeviationAware(**settings)
