"""Sharpness-aware steps against weights that are moved by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.training import Distil, SharpnessAware, Trainer, TrainingConfig


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def slopes_of(procedure, batch):
    value = procedure.step(batch, None)["main"].value
    return value, torch.autograd.grad(value, list(procedure.student.parameters()))


@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_the_gradient_is_that_of_the_weights_moved_uphill(radius):
    batch, model = next(TinyTask().batches("train", 8)), network()
    value, found = slopes_of(SharpnessAware(copy.deepcopy(model), None, CrossEntropy(), radius), batch)
    moved = copy.deepcopy(model)
    weights = list(moved.parameters())
    uphill = torch.autograd.grad(F.cross_entropy(moved(batch["pixel_values"]), batch["labels"]), weights)
    length = sum(float(slope.square().sum()) for slope in uphill) ** 0.5
    with torch.no_grad():
        for weight, slope in zip(weights, uphill):
            weight += radius * slope / length
    loss = F.cross_entropy(moved(batch["pixel_values"]), batch["labels"])
    torch.testing.assert_close(value, loss)
    for one, other in zip(found, torch.autograd.grad(loss, weights)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_radius_of_almost_nothing_is_plain_training_and_statistics_are_seen_once():
    batch = next(TinyTask().batches("train", 8))
    plain = Distil(network(), network(1), CrossEntropy() + SoftTargets())
    sharp = SharpnessAware(network(), network(1), CrossEntropy() + SoftTargets(), 1e-9)
    (one, first), (other, second) = slopes_of(plain, batch), slopes_of(sharp, batch)
    torch.testing.assert_close(one, other)
    for a, b in zip(first, second):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(plain.student.buffers(), sharp.student.buffers()):
        assert torch.equal(a, b)


def test_it_trains_with_hidden_signals_and_connectors():
    student, teacher = network(), network(1)
    before = copy.deepcopy(student.state_dict())
    procedure = SharpnessAware(student, teacher, CrossEntropy() + 0.1 * Hint("1", projector="linear"))
    Trainer(TrainingConfig(steps=3, batch_size=8), progress=False).run(procedure, TinyTask())
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), student.state_dict().values()))
    assert list(student.state_dict()) == list(before) and procedure.describe()["radius"] == 0.05


@pytest.mark.parametrize("radius", [0, -1.0, float("nan"), True])
def test_nonsense_is_refused(radius):
    with pytest.raises(UsageError, match="radius"):
        SharpnessAware(network(), None, CrossEntropy(), radius)
