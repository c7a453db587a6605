"""Class-partitioned losses against loops in float64, and the identities that tie them to plain soft targets."""

import math

import pytest
import torch
from test_objective_values import agree, draw, softmax
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives import DecoupledKD, NormalizedKD, SoftTargets, UniversalSelfKD
from limbeck.objectives.logits.partitions import log_mass, one_hot, within, zipf_targets
from limbeck.signals import Signals

Y = torch.tensor([1, 3, 0, 2, 2])
BATCH = {"labels": Y}


def others(z, y):
    """The logits of the classes other than y."""
    return torch.stack([zi for i, zi in enumerate(z) if i != y])


def test_normalized_equals_the_formula():
    def reference(student, teacher):
        total = 0
        for s, t, y in zip(student, teacher, Y):
            own = -softmax(t)[y] * torch.log(softmax(s)[y])
            n_s, n_t = softmax(others(s, y) / 3), softmax(others(t, y) / 3)
            assert abs(float(n_s.detach().sum()) - 1) < 1e-9 and abs(float(n_t.sum()) - 1) < 1e-9
            total = total + own + 3.5 * 9 * -(n_t * torch.log(n_s)).sum()
        return total / 5

    agree(NormalizedKD(gamma=3.5, temperature=3.0), draw(5, 4), draw(5, 4, seed=7), BATCH, reference)


def test_decoupled_equals_the_formula():
    def reference(student, teacher):
        total = 0
        for s, t, y in zip(student, teacher, Y):
            p, q = softmax(t / 4), softmax(s / 4)
            target = p[y] * torch.log(p[y] / q[y]) + (1 - p[y]) * torch.log((1 - p[y]) / (1 - q[y]))
            n_p, n_q = softmax(others(t, y) / 4), softmax(others(s, y) / 4)
            total = total + 16 * (0.5 * target + 6 * (n_p * torch.log(n_p / n_q)).sum())
        return total / 5

    agree(DecoupledKD(alpha=0.5, beta=6.0, temperature=4.0), draw(5, 4), draw(5, 4, seed=7), BATCH, reference)


def test_decoupled_with_the_teachers_own_weights_is_soft_targets():
    """KL = KL(b) + (1 - t_y) KL(n), example by example."""
    student, teacher = draw(5, 4), draw(5, 4, seed=7)
    for i in range(5):
        one = {"labels": Y[i : i + 1]}
        signals = Signals({"logits": student[i : i + 1]}), Signals({"logits": teacher[i : i + 1]})
        rest = 1 - float(softmax(teacher[i] / 2)[Y[i]])
        whole = SoftTargets(temperature=2.0)(*signals, one).value
        torch.testing.assert_close(DecoupledKD(1.0, rest, 2.0)(*signals, one).value, whole)


def test_the_parts_of_a_softmax_multiply_to_it():
    z = draw(5, 4)
    true = one_hot(Y, 4)
    log_p = torch.log_softmax(z / 2, -1)
    rebuilt = torch.where(
        true, log_mass(z, true, 2.0)[:, None], within(z, ~true, 2.0) + log_mass(z, ~true, 2.0)[:, None]
    )
    torch.testing.assert_close(rebuilt, log_p)
    torch.testing.assert_close(log_mass(z, true, 2.0).exp() + log_mass(z, ~true, 2.0).exp(), torch.ones(5))
    group = torch.tensor([True, True, False, False]).expand(5, 4)
    torch.testing.assert_close(within(z, group, 2.0).exp()[:, :2], torch.softmax(z[:, :2] / 2, -1))


def test_a_certain_teacher_keeps_the_others_apart():
    z = torch.tensor([[200.0, 1.0, 0.0]])
    found = within(z, torch.tensor([[False, True, True]])).exp()
    torch.testing.assert_close(found[0, 1:], torch.softmax(torch.tensor([1.0, 0.0]), 0))
    assert float(log_mass(z, torch.tensor([[False, True, True]]))) == pytest.approx(-199 + math.log(1 + math.exp(-1)))


def test_zipf_gives_one_over_the_rank():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    found = zipf_targets(scores, torch.tensor([[True, False, True, True]]))
    total = 1 + 1 / 2 + 1 / 3
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 0.0, 1 / 2, 1.0]]) / total)


@pytest.mark.parametrize("weak", [False, True], ids=["final", "with-weak"])
def test_universal_self_equals_the_formula(weak):
    logits, feature = draw(5, 4), draw(5, 3, 2, 2)
    objective = UniversalSelfKD("layer" if weak else None, alpha=0.7, beta=0.3, mu=0.2)
    signals = Signals({"logits": logits.clone().requires_grad_(), "layer": feature.clone().requires_grad_()})
    made = objective.connectors(signals, Signals({}))
    assert set(made) == ({"weak"} if weak else set())
    loss = objective(signals, Signals({}), BATCH, made).value
    loss.backward()
    z, f = logits.double().requires_grad_(), feature.double().requires_grad_()
    mean_squared = sum(float(softmax(zi)[y]) ** 2 for zi, y in zip(z, Y)) / 5
    expected = 0
    for zi, fi, y in zip(z, f, Y):
        s = softmax(zi)
        p = float(s[y]) ** 2 + 1 - mean_squared
        expected = expected - 0.7 * p * torch.log(s[y])
        scores = s.detach() / (1 - float(s[y]))
        if weak:
            layer = made["weak"]
            w = softmax(layer.weight.double() @ fi.flatten(1).mean(1) + layer.bias.double())
            expected = expected - 0.2 * sum((0.9 * (i == y) + 0.1 / 4) * torch.log(w[i]) for i in range(4))
            scores = scores + w.detach() / (1 - float(w[y]))
        rest = [i for i in range(4) if i != y]
        ranked = sorted(rest, key=lambda i: -float(scores[i]))
        zipf = {i: (1 / (r + 1)) / (1 + 1 / 2 + 1 / 3) for r, i in enumerate(ranked)}
        n = softmax(others(zi, y))
        expected = expected - 0.3 * sum(zipf[i] * torch.log(n[place]) for place, i in enumerate(rest))
    expected = expected / 5
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(signals.logits.grad.double(), z.grad, rtol=1e-5, atol=1e-7)
    if weak:
        torch.testing.assert_close(signals["layer"].grad.double(), f.grad, rtol=1e-5, atol=1e-7)


def test_mixed_labels_stand_for_their_likeliest_class():
    soft = {"labels": 0.8 * one_hot(Y, 4).float() + 0.05}
    signals = Signals({"logits": draw(5, 4)}), Signals({"logits": draw(5, 4, seed=7)})
    for objective in (NormalizedKD(), DecoupledKD(), UniversalSelfKD()):
        torch.testing.assert_close(objective(*signals, soft).value, objective(*signals, BATCH).value)


def test_two_classes_leave_nothing_to_compare_and_labels_are_needed():
    two, three = Signals({"logits": draw(5, 2)}), Signals({"logits": draw(5, 3)})
    for objective in (NormalizedKD(), DecoupledKD(), UniversalSelfKD()):
        with pytest.raises(UsageError, match="three classes"):
            objective(two, two, {"labels": Y % 2})
        with pytest.raises(UsageError, match="no class"):
            objective(three, three, BATCH)
        with pytest.raises(UsageError, match="labels"):
            objective(three, three, {})


def test_the_weak_classifier_must_be_handed_over():
    signals = Signals({"logits": draw(5, 4), "layer": draw(5, 3)})
    assert isinstance(UniversalSelfKD("layer").connectors(signals, signals)["weak"], nn.Linear)
    with pytest.raises(UsageError, match="connectors"):
        UniversalSelfKD("layer")(signals, signals, BATCH)
