"""Training that cannot go on: values that are not finite, divergence, losses without a gradient, and mistakes by name."""

import warnings

import pytest
import torch
from training_examples import TinyTask, tiny_model, train, weights

from limbeck.errors import DataError, TrainingError, UsageError
from limbeck.objectives import SoftTargets
from limbeck.objectives.base import Loss
from limbeck.training import Distil, Supervised, Trainer, TrainingConfig
from limbeck.training.watch import Watch


class Poisoned(Supervised):
    """A loss, or only its gradient, that is not finite at step 3."""

    def __init__(self, model, task, gradient):
        super().__init__(model, task)
        self.gradient = gradient

    def step(self, batch, state):
        losses = super().step(batch, state)
        if state.step != 3:
            return losses
        value, weight = losses["main"].value, self.student[0].weight.sum()
        poison = torch.sqrt((weight - weight.detach()).abs() * 0) if self.gradient else value * float("nan")
        return {"main": Loss(value + poison, {"TaskLoss": value.detach(), "Poison": poison.detach()})}


@pytest.mark.parametrize(("gradient", "words"), [(False, "Poison is nan"), (True, "gradient_norm is nan")])
def test_not_finite_stops_before_the_weights_move(gradient, words, tmp_path):
    task, model = TinyTask(), tiny_model()
    with pytest.raises(TrainingError, match=rf"step 3 .*learning rate.*{words}.*Try a lower"):
        train(Poisoned(model, task, gradient), task, folder=tmp_path, checkpoint_every=2)
    assert all(value.isfinite().all() for value in weights(model).values())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def watch(divergence, losses):
    guard = Watch(TrainingConfig(steps=1, divergence=divergence))
    for step, loss in enumerate(losses):
        guard.add(step, 0.0, 0.1, {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(1.0)})
    guard.read()
    return guard


def test_divergence_warns_or_stops_and_noise_does_not():
    fine = [1.0] * 50 + [100.0] * 2 + [1.0] * 300
    diverged = [1.0] * 50 + [100.0] * 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch("stop", fine)
        watch("ignore", diverged)
    with pytest.warns(UserWarning, match="diverged"):
        watch("warn", diverged)
    with pytest.raises(TrainingError, match="10 times its best"):
        watch("stop", diverged)


def test_values_read_late_name_the_step_they_are_of():
    losses = [1.0] * 5 + [float("inf")] + [float("nan")] * 4
    with pytest.raises(TrainingError, match=r"step 5 .*loss is inf"):
        watch("warn", losses)


def test_bf16_keeps_gradients_after_a_pass_without():
    class Peek(Supervised):
        def step(self, batch, state):
            with torch.no_grad():
                self.student(batch["pixel_values"])
            return super().step(batch, state)

    task, model = TinyTask(), tiny_model()
    before = weights(model)
    train(Peek(model, task), task, steps=1, precision="bf16")
    assert all(not torch.equal(before[name], value) for name, value in weights(model).items())


def test_a_loss_without_gradient_is_refused():
    class Constant(Supervised):
        def step(self, batch, state):
            return {"main": Loss(torch.tensor(1.0), {})}

    class Misnamed(Supervised):
        def step(self, batch, state):
            return {"mian": super().step(batch, state)["main"]}

    task = TinyTask()
    with pytest.raises(UsageError, match="requires_grad=False"):
        train(Constant(tiny_model(), task), task)
    with pytest.raises(UsageError, match="mian"):
        train(Misnamed(tiny_model(), task), task)


def test_mistakes_are_named():
    task = TinyTask()
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(UsageError, match="nothing to train"):
        train(Supervised(frozen, task), task)
    with pytest.raises(UsageError, match="no teacher"):
        Distil(tiny_model(), None, SoftTargets())
    with pytest.raises(UsageError, match="same module"):
        model = tiny_model()
        Distil(model, model, SoftTargets())
    with pytest.raises(UsageError, match="objective"):
        Distil(tiny_model(), None, "soft")
    with pytest.raises(UsageError, match="teacher"):
        Distil(tiny_model(), "teacher", SoftTargets())
    with pytest.raises(UsageError, match="TrainingConfig"):
        Trainer({"epochs": 1})
    with pytest.raises(UsageError, match="seed"):
        Trainer(TrainingConfig(steps=1), seed=-1)
    task.size = lambda split: 0
    with pytest.raises(DataError, match="empty"):
        train(Supervised(tiny_model(), task), task)
    task.size = lambda split: 500
    with pytest.raises(DataError, match="fewer batches"):
        train(Supervised(tiny_model(), task), task)
