"""The ranking loss against products of choices written out, its limits, and its shape."""

import pytest
import torch
from test_objective_values import agree, draw, softmax

from limbeck.objectives import CrossEntropy, RankedTargets
from limbeck.signals import Signals

Y = torch.tensor([1, 3, 0, 2, 2])


def pair():
    return draw(5, 4), 2 * draw(5, 4, seed=1)


def loss(objective, student, teacher):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), {"labels": Y}).value


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_equals_choices_one_after_another(temperature):
    def reference(student, teacher):
        total = 0
        for s, t, y in zip(student, teacher, Y.tolist()):
            left = [y, *sorted((c for c in range(len(t)) if c != y), key=lambda c: -float(t[c]))]
            sure = softmax(t / temperature)
            while left:
                total = total - sure[left[0]] * torch.log(s[left[0]].exp() / sum(s[c].exp() for c in left))
                left = left[1:]
        return total / len(Y)

    agree(RankedTargets(temperature=temperature), *pair(), {"labels": Y}, reference)


def test_a_teacher_that_is_sure_of_the_label_leaves_the_cross_entropy():
    student, _ = pair()
    sure = torch.full_like(student, -50.0).scatter_(1, Y[:, None], 50.0)
    torch.testing.assert_close(loss(RankedTargets(), student, sure), loss(CrossEntropy(), student, sure))


def test_a_shift_of_the_student_changes_nothing_and_it_is_convex():
    for seed in range(20):
        torch.manual_seed(seed)
        a, b, teacher = (3 * torch.randn(5, 4, dtype=torch.double) for _ in range(3))
        middle = loss(RankedTargets(), (a + b) / 2, teacher)
        assert float(middle) <= float(loss(RankedTargets(), a, teacher) + loss(RankedTargets(), b, teacher)) / 2 + 1e-12
        torch.testing.assert_close(loss(RankedTargets(), a + 7.0, teacher), loss(RankedTargets(), a, teacher))
