"""Conditional information against loops, its centroids over steps, and what it does to a model."""

import pytest
import torch
from test_objective_values import agree, draw, softmax
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives import ConditionalInformation, CrossEntropy
from limbeck.objectives.logits.information import ClassCentroids, class_centroids
from limbeck.signals import Signals
from limbeck.tasks import CustomTask
from limbeck.training import Distil, Trainer, TrainingConfig
from limbeck.training.procedures import State

Y = torch.tensor([1, 2, 0, 2, 2])
Q = tuple(tuple(row.softmax(0).tolist()) for row in draw(4, 4, seed=3))


def made(objective, logits):
    return objective.connectors(Signals({"logits": logits}), Signals({}))


def at(step, processes=1):
    return State(step, 10, 0.0, 0, torch.device("cpu"), 0, processes)


def test_it_is_the_divergence_from_the_given_centroids():
    def reference(student, _):
        total = 0
        for z, y in zip(student, Y):
            total = total + sum(p * (p / Q[y][c]).log() for c, p in enumerate(softmax(z))) / len(Y)
        return total

    objective, z = ConditionalInformation(Q, decay=1.0), 2 * draw(5, 4)
    agree(objective, z, z, {"labels": Y}, reference, connectors=made(objective, z))


def test_the_first_steps_centroids_are_its_own_class_means():
    """Then it is the information itself: the mean entropy of the class means less that of the predictions."""
    objective, z = ConditionalInformation(), 2 * draw(5, 4)
    found = objective(Signals({"logits": z}), Signals({}), {"labels": Y}, made(objective, z)).value
    p = z.softmax(-1)
    means = torch.stack([p[y == Y].mean(0) for y in Y])
    torch.testing.assert_close(found, (-(means * means.log()).sum(-1) + (p * p.log()).sum(-1)).mean())
    alone = objective(Signals({"logits": z[:2]}), Signals({}), {"labels": Y[:2]}, made(objective, z)).value
    assert float(alone) == pytest.approx(0, abs=1e-6)  # one example per class says nothing beyond it


def test_centroids_follow_a_moving_average_and_pieces_are_put_together():
    whole, pieces = ClassCentroids(4, 0.9), ClassCentroids(4, 0.9)
    expected = None
    for step in range(3):
        p = draw(5, 4, seed=step).softmax(-1)
        whole.observe(p, Y, torch.ones(5))
        pieces.observe(p[:2], Y[:2], torch.ones(2)), pieces.observe(p[2:], Y[2:], torch.ones(3))
        whole.after_step(at(step)), pieces.after_step(at(step))
        mean = p[Y == 2].mean(0)
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(whole.centroids[2], expected)
    torch.testing.assert_close(whole.centroids, pieces.centroids)
    torch.testing.assert_close(whole.centroids.sum(1), torch.ones(4))
    torch.testing.assert_close(whole.centroids[3], torch.full((4,), 0.25))  # never seen


def task():
    torch.manual_seed(0)
    x = torch.randn(80, 6)
    return CustomTask(
        {"train": (x, x[:, :3].argmax(1)), "test": (x, x[:, :3].argmax(1))}, classes=3, version="information"
    )


def test_a_model_trained_with_it_says_more_and_one_trained_against_it_less():
    data, spread = task(), {}
    for weight in (-1.0, 0.0, 0.15):
        torch.manual_seed(1)
        model = nn.Linear(6, 3)
        procedure = Distil(model, None, CrossEntropy() + weight * ConditionalInformation())
        Trainer(TrainingConfig(steps=60, batch_size=20, learning_rate=0.03), progress=False).run(procedure, data)
        q = class_centroids(lambda batch, model=model: model(batch["pixel_values"]), data)
        torch.testing.assert_close(q.sum(1), torch.ones(3))
        objective, batch = ConditionalInformation(q.tolist(), decay=1.0), next(data.batches("train", 80))
        z = model(batch["pixel_values"]).detach()
        spread[weight] = float(objective(Signals({"logits": z}), Signals({}), batch, made(objective, z)).value)
    assert spread[0.15] < spread[0.0] < spread[-1.0]


def test_a_wrong_number_of_classes_and_missing_centroids_are_refused():
    z = Signals({"logits": draw(5, 3)})
    with pytest.raises(UsageError, match="4 classes"):
        ConditionalInformation(Q).connectors(z, Signals({}))
    with pytest.raises(UsageError, match="connectors"):
        ConditionalInformation()(z, Signals({}), {"labels": Y})
