"""Scales and costs of objectives, against what they stand for."""

from __future__ import annotations

import pytest
import torch
from training_examples import TinyTask, same, tiny_model

from limbeck.measure.tensors import peak_tensor_bytes
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.training import Distil, Trainer, TrainingConfig
from limbeck.training.probe import loss_scales, step_costs

CONFIG = TrainingConfig(steps=5, batch_size=8, optimizer="sgd", learning_rate=0.1)


def test_scales_are_those_of_the_first_steps_of_training():
    objective = 0.5 * CrossEntropy() + 3.0 * SoftTargets(temperature=2.0)
    student = tiny_model(0, dropout=0.0)
    before = tiny_model(0, dropout=0.0)
    found = loss_scales(Distil(student, tiny_model(1), objective), TinyTask(), CONFIG, seed=4, steps=2)
    assert same(student, before)
    config = TrainingConfig(**{**CONFIG.to_json(), "log_every": 1, "milestones": (0.5, 0.75)})
    history = Trainer(config, seed=4, progress=False).run(Distil(student, tiny_model(1), objective), TinyTask())
    for row in found:
        wanted = [entry["parts"][row["name"]] for entry in history.steps[:2]]
        assert row["value"] == pytest.approx(sum(wanted) / 2, rel=1e-6) and row["parts"][row["name"]] == row["value"]
    assert [row["weight"] for row in found] == [0.5, 3.0] and all(row["factor"] == 1 for row in found)


def test_gradient_norms_and_pull_of_a_single_step():
    student, objective = tiny_model(0, dropout=0.0), CrossEntropy() + 0.1 * SoftTargets(temperature=2.0)
    found = loss_scales(Distil(student, tiny_model(1), objective), TinyTask(), CONFIG, seed=4, steps=1)
    norms = []
    for term in (CrossEntropy(), SoftTargets(temperature=2.0)):
        single = TrainingConfig(steps=1, batch_size=8, optimizer="sgd", learning_rate=0.1, log_every=1)
        model = tiny_model(0, dropout=0.0)
        history = Trainer(single, seed=4, progress=False).run(Distil(model, tiny_model(1), term), TinyTask())
        norms.append(history.steps[0]["gradient_norm"])
    assert [row["gradient_norm"] for row in found] == pytest.approx(norms, rel=1e-5)
    assert found[1]["share"] == pytest.approx(0.1 * norms[1] / (norms[0] + 0.1 * norms[1]), rel=1e-5)
    balanced = loss_scales(Distil(student, tiny_model(1), objective, "gradient_norm"), TinyTask(), CONFIG, 4, 1)
    assert balanced[1]["factor"] == pytest.approx(norms[0] / norms[1], rel=1e-5)
    assert [row["share"] for row in balanced] == pytest.approx([1 / 1.1, 0.1 / 1.1], rel=1e-5)


def test_costs_leave_the_students_alone_and_memory_repeats():
    procedures = {
        "labels": Distil(tiny_model(0), tiny_model(1), CrossEntropy()),
        "hint": Distil(tiny_model(0), tiny_model(1), CrossEntropy() + Hint("0")),
    }
    first, second = (step_costs(procedures, TinyTask(), CONFIG, rounds=3) for _ in range(2))
    assert same(procedures["hint"].student, tiny_model(0))
    for name, found in first.items():
        assert found["step_time"].runs == 3 and 0 < found["step_time"].low <= found["step_time"].value
        assert found["step_memory"].value == second[name]["step_memory"].value > 0
    assert first["hint"]["step_memory"].value > first["labels"]["step_memory"].value


def test_peak_bytes_by_hand():
    kept = torch.ones(1000)

    def run():
        first = kept + 1  # 4000
        view = first[::2]
        view.add_(1)  # a view and a change in place are nothing new
        second = first * 2  # 8000
        del first, view
        return second.sum()  # 4004

    assert peak_tensor_bytes(run) == 8000
    weight = torch.ones(100, requires_grad=True)
    assert peak_tensor_bytes(lambda: (weight * 2).sum().backward()) >= 400 and weight.grad is not None
