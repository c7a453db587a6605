"""The Trainer against loops written out by hand."""

import copy
import json
import random

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from training_examples import TinyTask, same, tiny_model, train, weights

from limbeck.errors import UsageError
from limbeck.objectives import Hint, SoftTargets
from limbeck.objectives.base import Loss
from limbeck.teachers import AveragedTeacher
from limbeck.training import Distil, Procedure, Supervised, TaskLoss
from limbeck.training.optimizers import parameter_groups
from limbeck.training.procedures import State
from limbeck.training.schedules import rate_factor


def by_hand(model, task, steps, batch_size, make, rate, clip=None, seed=0):
    optimizer = make(model)
    model.train()
    losses = []
    for step in range(steps):
        epoch, skip = divmod(step, task.size("train") // batch_size)
        batch = next(iter(task.batches("train", batch_size, seed=seed, epoch=epoch, augment=True, skip=skip)))
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor("cosine", step, steps)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, weight_decay=5e-4),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_equals_a_plain_loop_bit_for_bit(optimizer, clip):
    task, mine, plain = TinyTask(), tiny_model(dropout=0), tiny_model(dropout=0)
    losses = by_hand(plain, task, 7, 8, OPTIMIZERS[optimizer], 0.1, clip)
    settings = {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 5e-4, "gradient_clipping": clip}
    history = train(Supervised(mine, task), task, steps=7, **settings)
    assert [entry["loss"] for entry in history.steps] == pytest.approx(losses, abs=1e-7)
    assert same(mine, plain)
    assert not mine.training


def test_accumulation_equals_the_large_batch():
    task, whole, pieces = TinyTask(), tiny_model(dropout=0, norm=False), tiny_model(dropout=0, norm=False)
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "gradient_clipping": 1.0}
    first = train(Supervised(whole, task), task, **settings)
    second = train(Supervised(pieces, task), task, gradient_accumulation=3, **settings)  # pieces of 2, 3 and 3
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(pieces)[name], atol=1e-6), name
    for one, other in zip(first.steps, second.steps, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)


def test_pieces_count_by_positions_that_count():
    procedure = Supervised(tiny_model(), TinyTask())
    labels = torch.tensor([[1, 2, -100], [-100, -100, 4]])
    assert procedure.weight({"input_ids": torch.ones(2, 3), "labels": labels}) == 3
    assert procedure.weight({"pixel_values": torch.ones(5, 1), "labels": torch.rand(5, 3)}) == 5
    weight = torch.tensor([0.5, 2.0])
    assert procedure.weight({"pixel_values": torch.ones(2, 1), "sample_weight": weight}) == 2.5


@pytest.mark.parametrize("counted", ["labelled", "all"])
def test_pieces_without_labels_count_where_they_teach(counted):
    """Accumulated over two pieces, one of which has no label, the gradient is that of the whole batch."""
    teacher, student = tiny_model(dropout=0, norm=False), tiny_model(dropout=0, norm=False)
    for parameter in teacher.parameters():
        parameter.data.mul_(-0.7)
    procedure = Distil(student, teacher, SoftTargets(positions=counted))
    batch = next(iter(TinyTask().batches("train", 8)))
    batch["labels"] = torch.full_like(batch["labels"], -100).index_fill(0, torch.arange(4), 1)
    pieces = [{k: v[:4] for k, v in batch.items()}, {k: v[4:] for k, v in batch.items()}]
    procedure.prepare(batch, torch.device("cpu"))
    state = State(0, 1, 0.0, 0, torch.device("cpu"))
    whole = procedure.step(batch, state)["main"].value
    parts = [(procedure.weight(piece), procedure.step(piece, state)["main"].value) for piece in pieces]
    assert [weight for weight, _ in parts] == ([4, 4] if counted == "all" else [4, 0])
    assert float(sum(w * v.detach() for w, v in parts) / sum(w for w, _ in parts)) == pytest.approx(
        float(whole.detach()), abs=1e-6
    )


def test_generators_of_the_caller_are_left_as_they_were():
    task = TinyTask()
    torch.manual_seed(3)
    numpy.random.seed(3)
    random.seed(3)
    expected = (torch.rand(1).item(), numpy.random.rand(), random.random())
    torch.manual_seed(3)
    numpy.random.seed(3)
    random.seed(3)
    train(Supervised(tiny_model(), task), task)
    assert (torch.rand(1).item(), numpy.random.rand(), random.random()) == expected


def test_seed_decides_and_repeats():
    task = TinyTask()
    models = [tiny_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(Supervised(model, task), task, seed=seed, mixup=0.4, label_smoothing=0.1)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_average_equals_the_recurrence_and_is_what_is_evaluated_and_kept():
    task, model, plain = TinyTask(), tiny_model(dropout=0), tiny_model(dropout=0)
    snapshots = []

    class Watched(Supervised):
        def after_step(self, state):
            snapshots.append(weights(self.student))

    history = train(Watched(model, task), task, average=0.6)
    expected = weights(plain)
    for step, snapshot in enumerate(snapshots):
        keep = min(0.6, (1 + step) / (10 + step))
        for name, value in snapshot.items():
            floating = value.is_floating_point()
            expected[name] = keep * expected[name] + (1 - keep) * value if floating else value
    for name, value in weights(model).items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert not torch.allclose(weights(model)["0.weight"], snapshots[-1]["0.weight"])
    assert history.evaluations[-1]["loss"] == pytest.approx(
        task.evaluate(lambda b: model(b["pixel_values"]).detach())["loss"]
    )


def test_history_and_evaluations():
    task = TinyTask()
    history = train(Supervised(tiny_model(), task), task, steps=9, evaluate_every=1, log_every=2)
    assert [entry["step"] for entry in history.steps] == [2, 4, 6, 8, 9]
    assert [entry["step"] for entry in history.evaluations] == [3, 6, 9]
    assert {entry["split"] for entry in history.evaluations} == {"validation"}
    assert next(iter(history.evaluations[0])) == "step" and history.evaluations[-1]["epoch"] == 3
    assert history.samples == 72 and history.seconds > 0
    assert set(history.steps[0]) == {"step", "epoch", "loss", "parts", "learning_rate", "gradient_norm"}
    json.dumps(history.to_json(), allow_nan=False)


def test_distillation_pulls_towards_the_teacher_and_leaves_it_alone():
    task, teacher, student = TinyTask(), tiny_model(1), tiny_model(2, dropout=0)
    before = weights(teacher)

    def distance():
        with torch.no_grad():
            return (student.eval()(task.images).softmax(-1) - teacher.eval()(task.images).softmax(-1)).abs().mean()

    start = distance()
    objective = SoftTargets(temperature=2.0) + 0.5 * Hint("0") + 0.1 * TaskLoss(task)
    history = train(Distil(student, teacher, objective), task, steps=40, learning_rate=0.01)
    assert distance() < 0.6 * start
    assert all(torch.equal(before[name], value) for name, value in weights(teacher).items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    parts = set(history.steps[0]["parts"])
    assert {"SoftTargets", "TaskLoss"} < parts and len(parts) == 3


def test_connectors_are_made_trained_and_do_not_touch_running_statistics():
    task, student = TinyTask(), tiny_model(2)
    teacher = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.Flatten(), nn.Linear(96, 3))
    procedure = Distil(student, teacher, Hint("0", "0"))
    statistics = student[1].running_mean.clone()
    batch = next(iter(task.batches("train", 4)))
    procedure.prepare(batch, torch.device("cpu"))
    assert torch.equal(student[1].running_mean, statistics) and student.training
    names = [name for name in procedure.modules if name.startswith("connector.")]
    assert names
    made = []

    class Kept(Distil):
        def prepare(self, batch, device):
            super().prepare(batch, device)
            made.append(copy.deepcopy(self.modules))

    kept = Kept(student, teacher, Hint("0", "0"))
    train(kept, task, learning_rate=0.01)
    assert not same(made[0][names[0]], kept.modules[names[0]])


def test_teacher_that_follows_the_student():
    task, student = TinyTask(), tiny_model(2)
    teacher = AveragedTeacher(decay=0.5, warmup=False)
    start = weights(student)["0.weight"]
    procedure = Distil(student, teacher, SoftTargets() + TaskLoss(task))
    train(procedure, task, steps=1, learning_rate=0.01)
    expected = (start + weights(student)["0.weight"]) / 2
    assert torch.allclose(weights(teacher.average)["0.weight"], expected, atol=1e-6)
    assert "teacher.average" in procedure.kept_modules()


class Players(Procedure):
    """Two players on one graph: x falls along 3 x y, y rises along it; on odd steps y rests."""

    def __init__(self):
        self.modules = {"first": nn.Linear(1, 1, bias=False), "second": nn.Linear(1, 1, bias=False)}
        for module, value in zip(self.modules.values(), (2.0, 5.0), strict=True):
            nn.init.constant_(module.weight, value)
        self.seen = []

    @property
    def optimizers(self):
        return {"fall": ("first",), "rise": ("second",)}

    @property
    def learning_rates(self):
        return {"rise": 0.5}

    def step(self, batch, state):
        self.seen.append(state)
        shared = 3 * self.modules["first"].weight.sum() * self.modules["second"].weight.sum()
        losses = {
            "fall": Loss(shared, {"product": shared.detach()}),
            "rise": Loss(-shared, {"product": -shared.detach()}),
        }
        return losses if state.step % 2 == 0 else {"fall": losses["fall"]}

    def model(self):
        return None


def test_two_players_get_the_gradient_of_their_own_loss_only():
    players, task = Players(), TinyTask()
    settings = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.01, "schedule": "constant"}
    history = train(players, task, steps=2, **settings)
    x, y = 2.0, 5.0
    x, y = x - 0.01 * 3 * y, y + 0.005 * 3 * x
    x, y = x - 0.01 * 3 * y, y
    assert players.modules["first"].weight.item() == pytest.approx(x)
    assert players.modules["second"].weight.item() == pytest.approx(y)
    assert set(history.steps[0]["parts"]) == {"fall.product", "rise.product"}
    assert history.evaluations == []
    assert [state.step for state in players.seen] == [0, 1] and players.seen[0].steps == 2


def test_no_decay_of_norms_and_biases():
    model = tiny_model()
    groups = parameter_groups([model, model], 0.1, decay_norms_and_biases=False)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert {id(p) for p in groups[0]["params"]} == {id(model[0].weight), id(model[5].weight)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len(parameter_groups([model], 0.1, True)) == 1


@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"channels_last": True}], ids=["bf16", "channels_last"])
def test_precision_and_memory_order_change_little(settings):
    task, usual, other = TinyTask(), tiny_model(dropout=0), tiny_model(dropout=0)
    train(Supervised(usual, task), task)
    train(Supervised(other, task), task, **settings)
    assert not same(usual, other) or "channels_last" in settings
    for name, value in weights(usual).items():
        assert torch.allclose(value.float(), weights(other)[name].float(), atol=2e-2), name
    assert other[0].weight.is_contiguous() and other[0].weight.dtype == torch.float32


def test_channels_last_and_bf16_reach_the_model():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 3, 4)

        def forward(self, pixel_values):
            out = self.layer(pixel_values)
            seen.append((pixel_values.is_contiguous(memory_format=torch.channels_last), out.dtype))
            return out.flatten(1)

    task = TinyTask()
    train(Supervised(Spy(), task), task, steps=1, precision="bf16", channels_last=True)
    assert set(seen[1:]) == {(True, torch.bfloat16)}  # after the example that `prepare` looks at


def test_mixed_labels_reach_the_objective():
    task, seen = TinyTask(), []

    class Spy(Supervised):
        def step(self, batch, state):
            seen.append(batch["labels"])
            return super().step(batch, state)

    train(Spy(tiny_model(), task), task, steps=2, label_smoothing=0.3)
    assert all(labels.shape == (8, 3) for labels in seen)
    assert seen[0].max().item() == pytest.approx(0.8)
    task.classes = None
    with pytest.raises(UsageError, match="classes"):
        train(Supervised(tiny_model(), task), task, mixup=0.2)


def test_trackers_receive_numbers(tmp_path):
    seen = []

    class Listener:
        def log(self, values, step):
            seen.append((step, values))

        def finish(self):
            seen.append("finished")

    task = TinyTask()
    train(Supervised(tiny_model(), task), task, steps=3, trackers=[Listener()])
    assert seen[-1] == "finished" and seen[0][0] == 1
    assert {"train/loss", "train/parts/TaskLoss", "train/learning_rate"} <= set(seen[0][1])
    assert "validation/accuracy" in seen[-2][1]
    with pytest.raises(UsageError, match="tensorboard"):
        train(Supervised(tiny_model(), task), task, trackers=["tensorbord"], folder=tmp_path)
    with pytest.raises(UsageError, match="folder"):
        train(Supervised(tiny_model(), task), task, trackers=["tensorboard"])


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboard")
    task = TinyTask()
    train(Supervised(tiny_model(), task), task, steps=2, trackers=["tensorboard"], folder=tmp_path)
    assert list((tmp_path / "tensorboard").rglob("events*"))
