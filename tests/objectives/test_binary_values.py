"""Binary targets against a loop, soft targets of two classes, and a head that has been widened."""

import math

import pytest
import torch
from agreement import agree, draw
from torch import nn
from torch.nn import functional as F

from limbeck.objectives import AtExit, BinaryTargets, CrossEntropy, SoftTargets
from limbeck.signals import Signals

B, Q = 5, 7


def loss(objective, student, teacher, batch=None):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), batch or {}).value


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_mean_over_questions_of_both_answers(temperature):
    def reference(student, teacher):
        total = 0.0
        for n in range(B):
            for k in range(Q):
                p = 1 / (1 + math.exp(-float(teacher[n, k]) / temperature))
                q = 1 / (1 + (-student[n, k] / temperature).exp())
                total = total - p * q.log() - (1 - p) * (1 - q).log()
        return temperature**2 * total / (B * Q)

    agree(BinaryTargets(temperature), 2 * draw(B, Q), 2 * draw(B, Q, seed=1), {}, reference)


def test_one_question_is_soft_targets_of_two_classes_up_to_the_entropy():
    student, teacher = draw(B, 1), draw(B, 1, seed=1)
    pair = [torch.cat([z, torch.zeros(B, 1)], 1) for z in (student, teacher)]
    p = teacher.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(BinaryTargets(), student, teacher), loss(SoftTargets(1.0), *pair) + entropy)


def test_with_an_exit_it_is_a_classifier_that_was_widened():
    """The class outputs take the labels, the others the aspects, all from one linear layer: same loss, same gradients."""
    features, aspects, labels = draw(B, 6), draw(B, Q, seed=1), torch.arange(B) % 3
    wide = nn.Linear(6, 3 + Q)
    objective = CrossEntropy() + 4.0 * AtExit("pool", BinaryTargets(), teacher="aspects")
    known = Signals({"aspects": aspects})
    own = features.clone().requires_grad_()
    narrow = nn.Linear(6, 3)
    with torch.no_grad():
        narrow.weight.copy_(wide.weight[:3]), narrow.bias.copy_(wide.bias[:3])
    given = Signals({"logits": narrow(own), "pool": own})
    made = objective.connectors(given, known)
    branch = next(iter(made.values()))
    assert branch.weight.shape == (Q, 6)
    with torch.no_grad():
        branch.weight.copy_(wide.weight[3:]), branch.bias.copy_(wide.bias[3:])
    ours = objective(given, known, {"labels": labels}, made).value
    ours.backward()
    other = features.clone().requires_grad_()
    out = wide(other)
    theirs = F.cross_entropy(out[:, :3], labels) + 4 * F.binary_cross_entropy(out[:, 3:].sigmoid(), aspects.sigmoid())
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(own.grad, other.grad)
    torch.testing.assert_close(torch.cat([narrow.weight.grad, branch.weight.grad]), wide.weight.grad)
