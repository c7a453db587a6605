"""Joint steps, compared with the steps of their parts."""

import copy

import pytest
import torch
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.training import Constrained, Distil, Joint, Online, Supervised, Trainer, TrainingConfig


def network(seed=0, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 3))


def batch():
    return next(TinyTask().batches("train", 8))


def gradients(procedure, model, given):
    model.zero_grad()
    loss = procedure.step(given, None)["main"]
    loss.value.backward()
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


def test_value_and_gradient_are_the_weighted_sum_of_the_parts():
    model, teacher, given = network(), network(1), batch()
    parts = {"labels": Supervised(model, CrossEntropy()), "teacher": Distil(model, teacher, SoftTargets(2.0))}
    separate = {name: gradients(part, model, given) for name, part in parts.items()}
    loss, found = gradients(Joint(parts, {"teacher": 0.3}), model, given)
    expected = separate["labels"][0].value + 0.3 * separate["teacher"][0].value
    torch.testing.assert_close(loss.value, expected)
    for total, a, b in zip(found, separate["labels"][1], separate["teacher"][1]):
        torch.testing.assert_close(total, a + 0.3 * b)
    assert {name: value.item() for name, value in loss.parts.items()} == {
        "CrossEntropy": separate["labels"][0].value.item(),
        "SoftTargets": separate["teacher"][0].value.item(),
    }


def test_a_shared_module_is_one_and_connectors_are_trained_and_told():
    model, told = network(), []
    matching = Distil(model, network(1, width=5), Hint("1"))
    matching.after_step = lambda state: told.append(state)
    joint = Joint({"labels": Supervised(model, CrossEntropy()), "matching": matching})
    joint.prepare(batch(), torch.device("cpu"))
    assert set(joint.modules) == {"labels.student", "matching.connector.projector"} == set(joint.kept_modules())
    assert joint.model() is model and joint.weight(batch()) == 8
    joint.after_step("now")
    assert told == ["now"]


def test_with_weight_zero_training_is_that_of_the_other_part():
    first = network()
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    parts = {"labels": Supervised(first, CrossEntropy()), "teacher": Distil(first, network(1), SoftTargets())}
    config = TrainingConfig(steps=4, batch_size=8, learning_rate=0.05, optimizer="sgd")
    for procedure in (Joint(parts, {"teacher": 0.0}), Supervised(second, CrossEntropy())):
        Trainer(config, progress=False).run(procedure, TinyTask())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters()))


def test_runs_are_told_apart():
    model = network()
    parts = {"a": Supervised(model, CrossEntropy()), "b": Constrained(Supervised(model, CrossEntropy()), "*")}
    assert Joint(parts).describe() != Joint(parts, {"b": 2}).describe()
    assert Joint(parts).describe() != Joint({"a": parts["a"], "c": parts["b"]}).describe()


def test_what_does_not_fit_is_refused():
    model = network()
    one = Supervised(model, CrossEntropy())
    with pytest.raises(UsageError, match="two procedures or more"):
        Joint({"a": one})
    with pytest.raises(UsageError, match="names \\['c'\\]"):
        Joint({"a": one, "b": one}, {"c": 1.0})
    peers = Online({"x": network(), "y": network(1)}, CrossEntropy() + SoftTargets(positions="all"))
    with pytest.raises(UsageError, match="'b' has optimizers"):
        Joint({"a": one, "b": peers})
