"""Batch-norm folding: exact outputs, the right pairs, and refusal of the wrong ones."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.models import resnet
from limbeck.plan import Plan, apply
from limbeck.quantization import FoldBatchNorm


class Examples:
    """As much of a task as folding and calibration read."""

    def __init__(self, *shape, count=32, key="pixel_values"):
        self.x, self.key = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5)), key

    def example(self, batch_size=1):
        return {self.key: self.x[:batch_size]}

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        for start in range(0, min(len(self.x), limit or len(self.x)), batch_size):
            yield {self.key: self.x[start : start + batch_size]}


def stirred(model):
    """Batch norms with statistics and gains far from their initial ones."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            if module.affine:
                module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
                module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
    return model.eval()


class Shared(nn.Module):
    """The convolution's output is read by the batch norm and once more."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
        self.last_norm = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        return self.last_norm(self.last(self.norm(y) + y)).mean((2, 3))


class Branching(nn.Module):
    """Control flow that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > -1e9 else x


@pytest.mark.parametrize("with_task", [True, False], ids=["run", "trace"])
def test_resnet_outputs_are_equal(with_task):
    model, task = stirred(resnet(8)), Examples(3, 16, 16)
    plan = FoldBatchNorm().plan(model, task if with_task else None)
    assert len(plan.decisions["pairs"]) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    folded = apply(copy.deepcopy(model), Plan.from_json(plan.to_json()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        assert (folded(task.x) - model(task.x)).abs().max() < 1e-5


@pytest.mark.parametrize("with_task", [True, False], ids=["run", "trace"])
def test_an_output_that_is_read_twice_is_not_folded(with_task):
    model, task = stirred(Shared()), Examples(3, 8, 8)
    plan = FoldBatchNorm().plan(model, task if with_task else None)
    assert plan.decisions["pairs"] == [["last", "last_norm"]]
    with torch.no_grad():
        assert (apply(copy.deepcopy(model), plan)(task.x) - model(task.x)).abs().max() < 1e-5


def test_control_flow_needs_a_task():
    model, task = stirred(Branching()), Examples(3, 8, 8)
    with pytest.raises(UsageError, match="give FoldBatchNorm a task"):
        FoldBatchNorm().plan(model)
    plan = FoldBatchNorm().plan(model, task)
    assert plan.decisions["pairs"] == [["conv", "norm"]]
    with torch.no_grad():
        assert (apply(copy.deepcopy(model), plan)(task.x) - model(task.x)).abs().max() < 1e-5


def test_linear_layers_fold_too():
    model, task = stirred(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))), Examples(6)
    plan = FoldBatchNorm().plan(model, task)
    assert plan.decisions["pairs"] == [["0", "1"]]
    with torch.no_grad():
        assert (apply(copy.deepcopy(model), plan)(task.x) - model(task.x)).abs().max() < 1e-5


def test_planning_leaves_the_model_as_it_was():
    model = stirred(resnet(8)).train()
    before = copy.deepcopy(model.state_dict())
    FoldBatchNorm().plan(model, Examples(3, 16, 16))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_batch_norms_gets_an_empty_plan():
    assert FoldBatchNorm().plan(nn.Linear(2, 2)).decisions == {"pairs": []}


@pytest.mark.parametrize("pairs", [[["0", "9"]], [["0", "2"]], [["1", "0"]], [["0"]]])
def test_a_plan_that_does_not_fit_is_refused(pairs):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    with pytest.raises(ArtifactError, match="batch-norm plan"):
        apply(model, Plan("fold_batch_norm", {"pairs": pairs}))
