"""Processes and a Ray cluster give the numbers of this process; entries and data travel by digest."""

from __future__ import annotations

import hashlib

import pytest
import torch

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.experiments.exchange import Desk, bring_data
from limbeck.experiments.runner import run_papers
from limbeck.experiments.store import Store


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LIMBECK_STORE", str(tmp_path / "store"))


def metrics(entry):
    return {(n, s): run["metrics"] for n, arm in entry["arms"].items() for s, run in arm["seeds"].items()}


def run(tmp_path, **settings):
    return run_papers(["lab.free"], ledger=tmp_path / "ledger", fresh=True, progress=False, **settings)[0]


def test_processes_give_the_same_numbers(tmp_path):
    assert metrics(run(tmp_path)) == metrics(run(tmp_path, jobs=2))


@pytest.mark.slow
def test_ray_gives_the_same_numbers_and_shares_the_store(tmp_path):
    pytest.importorskip("ray")
    here = metrics(run(tmp_path))
    there = run(tmp_path, jobs=2, backend="ray")
    assert metrics(there) == here
    assert list((tmp_path / "store" / "papers").glob("*.safetensors"))


def test_ray_is_named_when_it_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UsageError, match=r"limbeck\[ray\]"):
        run(tmp_path, backend="ray")


class _Bed:
    def __init__(self, *names):
        self.names = names

    def collections(self):
        return self.names


def _paper(*names):
    return type("P", (), {"miniature": type("M", (), {"beds": (_Bed(*names),)})()})()


def test_data_travels_whole_and_checked(tmp_path, monkeypatch):
    source, target = tmp_path / "driver", tmp_path / "worker"
    (source / "set" / "config").mkdir(parents=True)
    (source / "set" / "config" / "train.parquet").write_bytes(b"rows")
    (source / "set" / "README.md").write_bytes(b"words")
    monkeypatch.setenv("LIMBECK_DATA", str(target))
    desk = Desk(tmp_path / "papers", source)
    assert bring_data(_paper("set"), desk) == ["set"]
    assert (target / "set" / "config" / "train.parquet").read_bytes() == b"rows"
    assert bring_data(_paper("set"), desk) == []
    with pytest.raises(DataError, match="'absent' is neither"):
        bring_data(_paper("absent"), desk)


def test_damaged_data_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "driver" / "set").mkdir(parents=True)
    (tmp_path / "driver" / "set" / "train.parquet").write_bytes(b"rows")
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "worker"))
    desk = Desk(tmp_path / "papers", tmp_path / "driver")
    desk.file = lambda collection, name: b"r0ws"
    with pytest.raises(ArtifactError, match="arrived damaged"):
        bring_data(_paper("set"), desk)
    assert not (tmp_path / "worker" / "set").exists()


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", ""])
def test_desk_serves_only_its_folders(tmp_path, name):
    with pytest.raises(ArtifactError):
        Desk(tmp_path, tmp_path).get(name)
    with pytest.raises(ArtifactError):
        Desk(tmp_path, tmp_path).file("set", "../../secret")


def test_store_entries_travel_to_another_machine(tmp_path):
    desk = Desk(tmp_path / "desk", tmp_path)
    key = {"teacher": 1}
    first, second = (Store(tmp_path / name, desk) for name in ("a", "b"))
    made = first.tensors(key, lambda: {"w": torch.arange(3.0)})

    def never():
        raise AssertionError("made twice")

    assert torch.equal(second.tensors(key, never)["w"], made["w"])
    assert [row["hit"] for row in second.used] == [True]


def test_store_makes_a_damaged_entry_again(tmp_path):
    store = Store(tmp_path)
    store.tensors({"k": 1}, lambda: {"w": torch.ones(2)})
    path = next(tmp_path.glob("*.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(bytes(damaged))
    assert torch.equal(store.tensors({"k": 1}, lambda: {"w": torch.ones(2)})["w"], torch.ones(2))
    assert hashlib.sha256(path.read_bytes()).hexdigest() != hashlib.sha256(bytes(damaged)).hexdigest()


def test_store_module_trains_once_and_keeps_ties(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(2, 2, bias=False)
            self.b = torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

    trained = []

    def train(module):
        trained.append(1)
        torch.nn.init.constant_(module.a.weight, 3.0)

    store = Store(tmp_path)
    store.module({"k": 1}, Tied, train)
    again = store.module({"k": 1}, Tied, train)
    assert trained == [1] and again.b.weight is again.a.weight and (again.b.weight == 3).all()
    with pytest.raises(ArtifactError, match="one side only"):
        store.module({"k": 1}, lambda: torch.nn.Linear(2, 2), train)
    with pytest.raises(UsageError, match="JSON"):
        store.tensors({"k": object()}, dict)
