"""Losses across a batch against loops and an independent optimal transport, value and gradient, and their limits."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from test_objective_values import agree, draw, softmax

from limbeck.objectives import MultiLevelTargets, SinkhornTargets, SoftTargets
from limbeck.objectives.logits.batchwise import transport_plan
from limbeck.signals import Signals

Y = torch.tensor([1, 3, 0, 2, 2])


def pair():
    return draw(5, 4), 2 * draw(5, 4, seed=1)


def loss(objective, student, teacher, **batch):
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), {"labels": Y, **batch}).value


def test_sinkhorn_equals_the_kernel_scaled_in_turn():
    """K = exp(-C / blur), divided by the sums of its rows, then of its columns, as published; mass 1 in place of N."""

    def reference(student, teacher):
        q, p = ([softmax(z / 2) for z in rows] for rows in (student, teacher))
        cost = torch.stack([torch.stack([(a - b).abs().sum() for b in p]) for a in q])
        kernel = torch.exp(-cost / 0.1)
        for _ in range(20):
            kernel = kernel / kernel.sum(1, keepdim=True)
            kernel = kernel / kernel.sum(0, keepdim=True)
        return (kernel * cost).sum() / len(Y)

    agree(SinkhornTargets(), *pair(), {"labels": Y}, reference)


def test_sinkhorn_nears_the_best_assignment_as_the_blur_vanishes():
    student, teacher = pair()
    q, p = (z.div(2).softmax(-1) for z in (student, teacher))
    cost = torch.cdist(q, p, p=1)
    rows, columns = linear_sum_assignment(cost.numpy())
    best = float(cost[rows, columns].mean())
    assert float(loss(SinkhornTargets(blur=0.002, iterations=500), student, teacher)) == pytest.approx(best, abs=1e-3)


def test_a_sharp_plan_leaves_a_perfect_student_alone_and_in_any_order():
    student, _ = pair()
    sharp = SinkhornTargets(blur=0.001, iterations=50)
    assert float(loss(sharp, student, student)) < 1e-6
    assert float(loss(sharp, student, student.flip(0))) < 1e-6  # a set against a set


def test_the_columns_of_a_plan_are_exact_and_its_rows_nearly():
    cost = torch.rand(4, 6, dtype=torch.double)
    rows, columns = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.full((6,), 1 / 6).double()
    plan = transport_plan(cost, rows, columns, 0.1, 100)
    torch.testing.assert_close(plan.sum(0), columns)
    torch.testing.assert_close(plan.sum(1), rows, rtol=1e-3, atol=1e-6)


def test_weights_are_masses():
    student, teacher = pair()
    rows = torch.tensor([0, 0, 1, 2, 3, 4])
    repeated = SinkhornTargets(iterations=200)
    whole = repeated(Signals({"logits": student[rows]}), Signals({"logits": teacher[rows]}), {}).value
    weighted = loss(repeated, student, teacher, sample_weight=torch.tensor([2.0, 1, 1, 1, 1]))
    torch.testing.assert_close(weighted, whole, rtol=1e-5, atol=1e-6)


def test_disjoint_predictions_have_a_finite_cost_and_a_gradient():
    far = torch.tensor([[12.0, 0, 0], [0, 12, 0]]).requires_grad_()
    found = SinkhornTargets(1.0)(Signals({"logits": far}), Signals({"logits": far.detach().roll(2, 1)}), {}).value
    found.backward()
    assert math.isfinite(found.item()) and 0.5 < found.item() <= 2
    assert float(far.grad.abs().max()) > 0


def test_multi_level_equals_loops():
    def reference(student, teacher):
        total, n, c = 0, len(Y), student.shape[1]
        for t in (2.0, 5.0):
            q, p = ([softmax(z / t) for z in rows] for rows in (student, teacher))
            total = total + 0.7 * t * t * sum((a * (a / b).log()).sum() for a, b in zip(p, q)) / n
            for i in range(n):
                for j in range(n):
                    total = total + 0.3 / n * (p[i] @ p[j] - q[i] @ q[j]) ** 2
            for i in range(c):
                for j in range(c):
                    pair = sum(a[i] * a[j] for a in p) - sum(b[i] * b[j] for b in q)
                    total = total + 0.2 / c * pair**2
        return total

    agree(MultiLevelTargets((2.0, 5.0), 0.7, 0.3, 0.2), *pair(), {"labels": Y}, reference)


def test_one_level_at_one_temperature_is_soft_targets():
    student, teacher = pair()
    single = MultiLevelTargets((4.0,), batch=0.0, class_=0.0)
    torch.testing.assert_close(loss(single, student, teacher), loss(SoftTargets(temperature=4.0), student, teacher))


def test_multi_level_weights_are_repetitions():
    student, teacher = pair()
    rows = torch.tensor([0, 0, 1, 2, 3, 4])
    whole = MultiLevelTargets()(Signals({"logits": student[rows]}), Signals({"logits": teacher[rows]}), {}).value
    weighted = loss(MultiLevelTargets(), student, teacher, sample_weight=torch.tensor([2.0, 1, 1, 1, 1]))
    torch.testing.assert_close(weighted, whole)
