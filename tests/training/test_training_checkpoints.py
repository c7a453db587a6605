"""Checkpoints: interrupted runs end as uninterrupted ones; damage, full disks and other runs are refused clearly."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from training_examples import TinyTask, same, tiny_model, weights

from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.training import Supervised, Trainer, TrainingConfig
from limbeck.training import checkpoints as checkpoints_module
from limbeck.training.checkpoints import (
    Checkpoints,
    differences,
    flatten_optimizer,
    module_tensors,
    restore_modules,
    restore_optimizer,
)

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def unflushed(monkeypatch):
    """A killed process loses nothing that is only in the system's cache, and disks are slow."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Stopped(Exception):
    pass


class StopAt(Supervised):
    """Raises after the weights moved in step `stop`."""

    def __init__(self, model, task, stop):
        super().__init__(model, task)
        self.stop = stop

    def describe(self):
        return {**super().describe(), "procedure": "Supervised"}

    def after_step(self, state):
        if state.step == self.stop:
            raise Stopped


CONFIG = {
    "steps": 12,
    "batch_size": 8,
    "average": 0.8,
    "cutmix": 0.5,
    "evaluate_every": 1,
    "checkpoint_every": 2,
    "log_every": 3,
}


def run(folder, model, stop=None, **changes):
    task = TinyTask()
    return Trainer(TrainingConfig(**CONFIG | changes), folder, progress=False).run(StopAt(model, task, stop), task)


@pytest.fixture(scope="module")
def whole():
    """The weights of an uninterrupted run."""
    model = tiny_model()
    run(None, model)
    return model


def interrupted(folder, stop, **changes):
    with pytest.raises(Stopped):
        run(folder, tiny_model(), stop, **changes)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 6, 11])
def test_continued_run_ends_with_the_same_weights_and_history(tmp_path, optimizer, stop):
    whole, other = tiny_model(), tiny_model()
    expected = run(None, whole, optimizer=optimizer)
    interrupted(tmp_path, stop, optimizer=optimizer)
    found = run(tmp_path, other, optimizer=optimizer)
    assert same(whole, other)
    assert (found.steps, found.evaluations, found.samples) == (expected.steps, expected.evaluations, expected.samples)


def test_continuing_does_not_start_from_the_beginning(tmp_path):
    interrupted(tmp_path, 7)
    seen = []

    class Spy(StopAt):
        def step(self, batch, state):
            seen.append(state.step)
            return super().step(batch, state)

    task = TinyTask()
    Trainer(TrainingConfig(**CONFIG), tmp_path, progress=False).run(Spy(tiny_model(), task, None), task)
    assert seen == [6, 7, 8, 9, 10, 11]


def test_finished_run_is_not_trained_again(tmp_path):
    first, second = tiny_model(), tiny_model(9)
    history = run(tmp_path, first)
    again = run(tmp_path, second, stop=0)  # would raise if a step were taken
    assert again == history and same(first, second)
    assert json.loads((tmp_path / "history.json").read_text()) == history.to_json()
    assert not any(name.startswith("optimizers") for name in Checkpoints(tmp_path / "checkpoints").read(12)[0])


def test_two_checkpoints_are_kept_and_nothing_else(tmp_path):
    interrupted(tmp_path, 9)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000008"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, whole, file, damage):
    other = tiny_model()
    interrupted(tmp_path, 9)
    harm(tmp_path / "checkpoints/step-00000008" / file, damage)
    with pytest.warns(UserWarning, match=r"step-00000008.*Going on from step 6"):
        run(tmp_path, other)
    assert same(whole, other)


def harm(path, damage):
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data[: len(data) // 2] if damage == "truncate" else data)
    if damage == "remove":
        path.unlink()


def test_all_damaged_is_an_error_that_names_them(tmp_path):
    interrupted(tmp_path, 9)
    for step in (6, 8):
        harm(tmp_path / f"checkpoints/step-{step:08d}/tensors.safetensors", "truncate")
    with pytest.raises(ArtifactError, match=r"step-00000008.*step-00000006.*Delete"):
        run(tmp_path, tiny_model())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.5}, "config.learning_rate was 0.001 and is 0.5"),
        ({"steps": 13}, "config.steps was 12 and is 13"),
        ({"optimizer": "sgd"}, 'config.optimizer was "adamw" and is "sgd"'),
    ],
)
def test_checkpoint_of_another_config_is_refused(tmp_path, changes, words):
    interrupted(tmp_path, 5)
    with pytest.raises(UsageError, match=words):
        run(tmp_path, tiny_model(), **changes)


def test_checkpoint_of_another_seed_model_task_or_objective_is_refused(tmp_path):
    interrupted(tmp_path, 5)
    task, config = TinyTask(), TrainingConfig(**CONFIG)
    with pytest.raises(UsageError, match="seed was 0 and is 1"):
        Trainer(config, tmp_path, seed=1, progress=False).run(StopAt(tiny_model(), task, None), task)
    with pytest.raises(UsageError, match=r"modules\.student/1\.weight"):
        run(tmp_path, tiny_model(norm=False))
    other = TinyTask(seed=8)
    with pytest.raises(UsageError, match="task"):
        Trainer(config, tmp_path, progress=False).run(StopAt(tiny_model(), other, None), other)
    from limbeck.objectives import CrossEntropy

    with pytest.raises(UsageError, match=r"procedure\.objective"):
        Trainer(config, tmp_path, progress=False).run(StopAt(tiny_model(), CrossEntropy(), None), task)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [2, 4]


def test_what_only_watches_may_change(tmp_path, whole):
    other = tiny_model()
    interrupted(tmp_path, 5)
    run(tmp_path, other, checkpoint_every=5, evaluate_every=None, log_every=1)
    assert same(whole, other)


@pytest.mark.parametrize("where", ["write", "rename"])
def test_full_disk_is_one_clear_error_and_costs_nothing(tmp_path, whole, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    other = tiny_model()
    interrupted(tmp_path, 5)
    with monkeypatch.context() as patch:
        patch.setattr(*((checkpoints_module, "save_file") if where == "write" else (os, "replace")), full)
        with pytest.raises(LimbeckError, match=r"No space left.*untouched.*make room"):
            run(tmp_path, tiny_model())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000004"]
    run(tmp_path, other)
    assert same(whole, other)


def test_half_written_leftovers_of_a_killed_run_are_removed(tmp_path):
    interrupted(tmp_path, 5)
    left = tmp_path / "checkpoints/.step-00000006-1.tmp"
    left.mkdir()
    (left / "tensors.safetensors").write_bytes(b"half")
    run(tmp_path, tiny_model())
    assert not left.exists()


def test_newer_format_is_refused(tmp_path):
    store = Checkpoints(tmp_path)
    path = store.save(1, {"a": torch.ones(1)}, {"identity": {}}) / "state.json"
    document = json.loads(path.read_text())
    document["body"]["format"] = 99
    document["digest"] = checkpoints_module.digest(document["body"])
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="format 99"):
        store.latest({})


def test_tied_and_strided_tensors_survive(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Conv2d(2, 2, 3)})
    model["b"].weight = model["a"].weight
    model["c"].to(memory_format=torch.channels_last)
    store = Checkpoints(tmp_path)
    store.save(1, module_tensors({"m": model}), {"identity": {}})
    expected = weights(model)
    nn.init.zeros_(model["a"].weight)
    nn.init.zeros_(model["c"].weight)
    restore_modules({"m": model}, store.read(1)[0])
    assert all(torch.equal(value, expected[name]) for name, value in weights(model).items())
    assert model["b"].weight is model["a"].weight


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.Rprop]
)
def test_optimizer_state_round_trip(make):
    def stepped(parameter, optimizer, times):
        for _ in range(times):
            optimizer.zero_grad()
            (parameter**3).sum().backward()
            optimizer.step()

    first = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make([first])
    stepped(first, optimizer, 3)
    second = nn.Parameter(first.detach().clone())
    copy = make([second])
    restore_optimizer(copy, *flatten_optimizer(optimizer))
    stepped(first, optimizer, 2)
    stepped(second, copy, 2)
    assert torch.equal(first, second)


def test_differences_are_named_by_path():
    assert differences({"a": {"b": 1, "c": [1]}}, {"a": {"b": 2, "c": (1,)}, "d": 0}) == [
        "a.b was 1 and is 2",
        "d was null and is 0",
    ]


def test_killed_at_random_moments_ends_with_the_same_digest(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / "kill_runner.py"), str(tmp_path), "5", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills, expected, found = done.stdout.split()
    assert kills == "5"
    assert expected == found
