import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import ShieldedTargets, SoftTargets
from limbeck.objectives.logits.privacy import shielded
from limbeck.signals import Signals


def example():
    draw = torch.Generator().manual_seed(2)
    student, teacher = (2 * torch.randn(3, 4, 5, generator=draw) for _ in range(2))
    return student, teacher, torch.rand(3, 4, generator=draw)


def value(objective, student, teacher, **batch):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), batch).value


def test_value_and_gradient_are_those_of_a_naive_loop():
    student, teacher, degree = example()
    student.requires_grad_()
    got = value(ShieldedTargets(temperature=2.0, private_temperature=10.0, noise=0.0), student, teacher, private=degree)
    total = 0.0
    for b in range(3):
        for t in range(4):
            p = F.softmax(teacher[b, t] / (2 + float(degree[b, t]) * 8), -1)
            q = F.softmax(student[b, t] / 2, -1)
            total = total + 4 * (p * (p / q).log()).sum() / 12
    torch.testing.assert_close(got, total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, student)[0] for x in (got, total)), rtol=1e-5, atol=1e-6)


def test_open_tokens_are_plain_soft_targets_even_with_noise():
    student, teacher, degree = example()
    found = value(ShieldedTargets(temperature=3.0, noise=5.0), student, teacher, private=torch.zeros_like(degree))
    torch.testing.assert_close(found, value(SoftTargets(temperature=3.0), student, teacher))


def test_a_private_target_tends_to_the_uniform_distribution():
    _, teacher, degree = example()
    found = shielded(teacher, torch.ones_like(degree), 1.0, 1e6)
    torch.testing.assert_close(found, torch.full_like(found, -math.log(5)), rtol=0, atol=1e-4)


def test_noise_is_normal_in_the_logits_and_grows_with_the_degree():
    torch.manual_seed(0)
    logits = torch.zeros(20000, 2)
    for degree in (0.5, 1.0):
        found = shielded(logits, torch.full((20000,), degree), 1.0, 1.0, noise=0.8)
        gap = found[:, 0] - found[:, 1]  # the difference of two draws
        assert float(gap.std()) == pytest.approx(degree * 0.8 * math.sqrt(2), rel=0.03)
        assert abs(float(gap.mean())) < 0.03


def test_a_batch_without_degrees_is_refused():
    student, teacher, degree = example()
    with pytest.raises(UsageError, match="private"):
        value(ShieldedTargets(), student, teacher)
    with pytest.raises(UsageError, match=r"\(3, 4\)"):
        value(ShieldedTargets(), student, teacher, private=degree[0])


@pytest.mark.parametrize("settings", [{"private_temperature": 0.5}, {"noise": -1.0}, {"temperature": 0.0}])
def test_nonsense_is_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        ShieldedTargets(**settings)
