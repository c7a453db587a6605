"""Teachers that are the student's past: what they remember, when, and that a resumed run remembers the same."""

import copy

import pytest
import torch
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, MemoryContrast, MixedTargets
from limbeck.signals import Signals
from limbeck.teachers import EnsembleTeacher, EpochSnapshot, FrozenTeacher, PastPredictions
from limbeck.training import Distil, Trainer, TrainingConfig

CONFIG = TrainingConfig(epochs=3, batch_size=8, learning_rate=0.05, checkpoint_every=2)
LOGITS = frozenset({"logits"})


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def table():
    return PastPredictions(24, 3)


def batch(index, epoch=0):
    index = torch.tensor(index)
    return {"index": index, "labels": index % 3, "epoch": epoch}


def test_an_unseen_example_is_answered_by_its_label_and_a_seen_one_by_what_was_said():
    teacher, said = table(), torch.randn(2, 3)
    first = teacher.signals(batch([4, 7]), LOGITS).logits
    assert torch.equal(torch.softmax(first, -1), torch.eye(3)[[1, 1]])
    teacher.observe(batch([4, 7]), Signals({"logits": said}))
    found = teacher.signals(batch([7, 5, 4]), LOGITS).logits
    torch.testing.assert_close(
        found.softmax(-1), torch.stack([said[1].softmax(-1), torch.eye(3)[2], said[0].softmax(-1)])
    )
    teacher.observe(batch([4]), Signals({"logits": -said[:1]}))
    torch.testing.assert_close(teacher.signals(batch([4]), LOGITS).logits.softmax(-1), (-said[:1]).softmax(-1))


def test_mixed_labels_of_unseen_examples_stay_mixed():
    mixed = batch([0, 1]) | {"labels": torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])}
    torch.testing.assert_close(table().signals(mixed, LOGITS).logits.softmax(-1), mixed["labels"])


def test_a_step_reads_what_was_said_before_it_writes_what_is_said_now():
    task, student, teacher = TinyTask(), network(), table()
    procedure = Distil(student.eval(), teacher, MixedTargets(share=1.0))
    given = next(task.batches("train", 8))
    hard = CrossEntropy()(Signals({"logits": student(given["pixel_values"])}), Signals({}), given).value
    torch.testing.assert_close(procedure.step(given, None)["main"].value, hard)
    before = student(given["pixel_values"]).detach()
    with torch.no_grad():
        student[-1].bias += torch.tensor([1.0, 0.0, -1.0])
    after = student(given["pixel_values"])
    expected = -(before.softmax(-1) * after.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(procedure.step(given, None)["main"].value, expected)


def test_the_first_epoch_is_plain_training():
    weights = []
    for teacher, objective in ((table(), MixedTargets(epochs=3)), (None, CrossEntropy())):
        student = network()
        Trainer(TrainingConfig(epochs=1, batch_size=8), progress=False).run(
            Distil(student, teacher, objective), TinyTask()
        )
        weights.append(student.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


def test_a_snapshot_changes_when_an_epoch_begins_and_only_then():
    student, images = network(), torch.randn(4, 2, 4, 4)
    teacher = EpochSnapshot()
    teacher.start(student)
    initial = copy.deepcopy(student).eval()
    with torch.no_grad():
        student[1].weight += 1
    current = copy.deepcopy(student).eval()
    at = lambda epoch: teacher.signals({"pixel_values": images, "epoch": epoch}, LOGITS).logits  # noqa: E731
    assert torch.equal(at(0), initial(images))
    assert torch.equal(at(1), current(images))
    with torch.no_grad():
        student[1].weight += 1
    assert torch.equal(at(1), current(images))
    assert student.training


class Stopped(Exception):
    pass


class Stops(Distil):
    """Dies before one step."""

    at = -1

    def step(self, batch, state):
        if state.step == self.at:
            raise Stopped
        return super().step(batch, state)

    def describe(self):
        return super().describe() | {"procedure": "Distil"}


@pytest.mark.parametrize("make", [table, EpochSnapshot], ids=["predictions", "snapshot"])
def test_a_resumed_run_ends_with_the_same_numbers(make, tmp_path):
    def run(folder=None, at=-1):
        procedure = Stops(network(), make(), MixedTargets(epochs=3))
        procedure.at = at
        Trainer(CONFIG, folder, progress=False).run(procedure, TinyTask())
        return procedure

    whole = run()
    with pytest.raises(Stopped):
        run(tmp_path, at=5)
    resumed = run(tmp_path)
    for name, module in whole.kept_modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.kept_modules()[name].state_dict()[key]), (name, key)


def test_a_resumed_run_remembers_the_bank(tmp_path):
    """The embeddings of a memory bank and the draws from it are those of a run that was never cut off."""

    def run(folder=None, at=-1):
        objective = CrossEntropy() + MemoryContrast(24, "3", "3", width=4, negatives=7, normalize=True)
        procedure = Stops(network(), network(1), objective)
        procedure.at = at
        Trainer(CONFIG, folder, progress=False).run(procedure, TinyTask())
        return procedure.kept_modules()

    whole = run()
    with pytest.raises(Stopped):
        run(tmp_path, at=5)
    resumed = run(tmp_path)
    assert bool((whole["connector.1_bank"].classes >= 0).all())
    for name, module in whole.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed[name].state_dict()[key]), (name, key)


def test_a_member_of_an_ensemble_observes_too():
    teacher = table()
    frozen = FrozenTeacher(network())
    EnsembleTeacher([teacher, frozen]).observe(batch([3]), Signals({"logits": torch.tensor([[5.0, 0.0, 0.0]])}))
    assert bool(teacher.table.seen[3])


def test_what_is_missing_is_named():
    with pytest.raises(UsageError, match="index"):
        table().signals({"labels": torch.tensor([0])}, LOGITS)
    with pytest.raises(UsageError, match="24 examples"):
        table().signals(batch([24]), LOGITS)
    with pytest.raises(UsageError, match="labels"):
        table().signals({"index": torch.tensor([1])}, LOGITS)
    with pytest.raises(UsageError, match="logits only"):
        table().signals(batch([1]), frozenset({"layer"}))
    with pytest.raises(UsageError, match="start"):
        EpochSnapshot().signals(batch([1]), LOGITS)
    for wrong in ((0, 3), (24, 1), (2.0, 3)):
        with pytest.raises(UsageError, match="PastPredictions"):
            PastPredictions(*wrong)
