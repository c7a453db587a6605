"""Constrained: a projected gradient step, by hand."""

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.tasks import CustomTask
from limbeck.training import Constrained, Supervised, Trainer, TrainingConfig


def train(constrained):
    torch.manual_seed(0)
    x, y = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    task = CustomTask(dict.fromkeys(("train", "validation", "test"), (x, y)), classes=2)
    model = nn.Sequential(nn.Linear(3, 2))
    start = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    step = Supervised(model, task)
    config = TrainingConfig(steps=1, batch_size=8, optimizer="sgd", momentum=0, nesterov=False, learning_rate=0.5)
    Trainer(config, progress=False).run(Constrained(step, "student/0.weight") if constrained else step, task)
    return start, model[0]


def test_the_weight_is_the_plain_step_projected_and_the_rest_is_free():
    _, plain = train(False)
    _, found = train(True)
    assert bool((plain.weight < 0).any())
    torch.testing.assert_close(found.weight, plain.weight.clamp(min=0))
    torch.testing.assert_close(found.bias, plain.bias)


def test_a_name_that_is_not_there_is_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    task = CustomTask(
        {s: (torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])) for s in ("train", "validation", "test")}, classes=2
    )
    with pytest.raises(UsageError, match=r"0\.bias"):
        Constrained(Supervised(model, task), "student/fc.weight")
