"""Schedules against closed forms and torch's own schedulers."""

import math

import pytest
import torch

from limbeck.training.schedules import rate_factor


def test_cosine_equals_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert rate_factor("cosine", step, 20) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_warmup_rises_linearly_then_the_schedule_starts():
    factors = [rate_factor("linear", step, 10, warmup=0.4) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert rate_factor("cosine", 7, 10, warmup=0.4) == pytest.approx((1 + math.cos(math.pi / 2)) / 2)


def test_step_falls_at_each_milestone():
    factors = [rate_factor("step", step, 8, milestones=(0.5, 0.75), decay=0.1) for step in range(8)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant():
    assert {rate_factor("constant", step, 9) for step in range(9)} == {1.0}
