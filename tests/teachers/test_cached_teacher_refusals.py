"""CachedTeacher and build_cache: what is refused, what was damaged or interrupted."""

import json

import pytest
import torch
from cached_examples import ANY, SETTINGS, Views, network, same, training
from torch import nn

from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.teachers import AveragedTeacher, CachedTeacher, FrozenTeacher, build_cache
from limbeck.teachers.cached import blended


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"augment": False}, "augmentation"),
        ({"limit": 10}, "limit"),
        ({"passes": 4}, "passes=4"),
        ({"teacher": FrozenTeacher(network(seed=1))}, "teacher"),
        ({"teacher": FrozenTeacher(network(), precision="bf16")}, "teacher"),
        ({"task": Views(salt=1)}, "data"),
        ({"task": Views(augmentation="noise 0.6")}, "augmentation"),
    ],
)
def test_refused_when_made_of_something_else(tmp_path, change, named):
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    CachedTeacher(tmp_path, Views(), teacher=FrozenTeacher(network()), passes=3, **same(SETTINGS))
    arguments = {"task": Views()} | same(SETTINGS) | change
    with pytest.raises(ArtifactError, match=named):
        CachedTeacher(tmp_path, arguments.pop("task"), **arguments)


def test_a_folder_with_another_cache_is_not_overwritten(tmp_path):
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    with pytest.raises(ArtifactError, match="top_k"):
        build_cache(FrozenTeacher(network()), Views(), tmp_path, top_k=3, **SETTINGS)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest", "nonsense", "newer"])
def test_damage_is_refused(tmp_path, damage):
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    shard, manifest = sorted(tmp_path.glob("*.safetensors"))[1], tmp_path / "cache.json"
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[:-8])
    elif damage == "delete":
        shard.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"seed": 7', '"seed": 9'))
    elif damage == "newer":
        manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    else:
        manifest.write_text("{")
    with pytest.raises(ArtifactError):
        CachedTeacher(tmp_path, Views(), seed=9 if damage == "manifest" else 7, batch_size=5)


class Failing(FrozenTeacher):
    """Answers a few batches, then breaks, like a process that is killed."""

    def __init__(self, model, answers):
        super().__init__(model)
        self.left = answers

    def signals(self, batch, names):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().signals(batch, names)


@pytest.mark.parametrize(("answers", "kept"), [(0, 0), (1, 0), (2, 2), (5, 5), (6, 5), (11, 10), (14, 14)])
def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path, answers, kept):
    whole = build_cache(FrozenTeacher(network()), Views(), tmp_path / "whole", **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        build_cache(Failing(network(), answers), Views(), tmp_path / "cut", **SETTINGS)
    if kept:
        with pytest.raises(ArtifactError, match="not complete"):
            CachedTeacher(tmp_path / "cut", Views(), **same(SETTINGS))
        (tmp_path / "cut" / ".pass-000-00009.safetensors-x.tmp").write_bytes(b"left by a kill")
    task = Views()
    again = build_cache(FrozenTeacher(network()), task, tmp_path / "cut", **SETTINGS)
    assert task.served == 15 - kept
    shards = {f.name: f.read_bytes() for f in (tmp_path / "whole").iterdir()}
    assert shards == {f.name: f.read_bytes() for f in (tmp_path / "cut").iterdir()}
    assert whole.digest() == again.digest()
    task.served = 0
    build_cache(FrozenTeacher(network()), task, tmp_path / "cut", **SETTINGS)
    assert task.served == 0  # complete: nothing is computed again


def test_a_damaged_shard_is_computed_again_by_the_build(tmp_path):
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    next(iter(sorted(tmp_path.glob("*.safetensors")))).write_bytes(b"broken")
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_batches_it_cannot_answer_are_refused(tmp_path):
    task = Views()
    cached = build_cache(FrozenTeacher(network()), task, tmp_path, **SETTINGS)
    batch = next(training(task, 1, seed=7))
    with pytest.raises(UsageError, match="index"):
        cached.signals({k: v for k, v in batch.items() if k != "index"}, ANY)
    with pytest.raises(UsageError, match="epoch"):
        cached.signals({k: v for k, v in batch.items() if k != "epoch"}, ANY)
    with pytest.raises(ArtifactError, match="epoch 3"):
        cached.signals(batch | {"epoch": 3}, ANY)
    with pytest.raises(ArtifactError, match="example 23"):
        cached.signals(batch | {"index": torch.tensor([1, 23])}, ANY)
    with pytest.raises(ArtifactError, match="example -1"):
        cached.signals(batch | {"index": torch.tensor([1, -1])}, ANY)
    with pytest.raises(UsageError, match="names="):
        cached.signals(batch, frozenset({"0"}))
    with pytest.raises(UsageError, match="mixup"):
        cached.signals(batch | {"labels": torch.tensor([[0.7, 0.3, 0.0]] * 5)}, ANY)
    smooth = 0.9 * torch.eye(3)[batch["labels"]] + 0.1 / 3
    assert cached.signals(batch | {"labels": smooth}, ANY).logits.shape == (5, 9)


def test_blended_labels_are_told_from_smoothed_ones():
    one_hot = torch.eye(4)[[0, 3, 1]]
    assert not blended(one_hot)
    assert not blended(0.9 * one_hot + 0.025)
    assert blended(0.6 * one_hot + 0.4 * one_hot.flip(0))
    assert blended(torch.tensor([[0.8, 0.2], [1.0, 0.0]]))


def test_nonsense_is_refused(tmp_path):
    teacher, task = FrozenTeacher(network()), Views()
    for wrong in ({"passes": 0}, {"top_k": 0}, {"dtype": "int3"}, {"temperature": 0.0}, {"batch_size": True}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            build_cache(teacher, task, tmp_path, progress=False, **wrong)
    with pytest.raises(UsageError, match="changes"):
        build_cache(AveragedTeacher(), task, tmp_path, progress=False)
    with pytest.raises(ArtifactError, match="build_cache"):
        CachedTeacher(tmp_path / "none", task)
    broken = network()
    nn.init.constant_(broken[2].bias, float("nan"))
    with pytest.raises(LimbeckError, match="not finite"):
        build_cache(FrozenTeacher(broken), task, tmp_path, progress=False)
    large = network()
    nn.init.constant_(large[0].bias, 1e6)
    with pytest.raises(UsageError, match="float32"):
        build_cache(FrozenTeacher(large), task, tmp_path / "large", names=["0"], progress=False)


def test_the_manifest_says_what_the_answers_are_made_of(tmp_path):
    build_cache(FrozenTeacher(network()), Views(), tmp_path, **SETTINGS)
    made_of = json.loads((tmp_path / "cache.json").read_text())["made_of"]
    assert {"teacher", "data", "augmentation", "seed", "passes", "batch_size", "limit", "split", "top_k"} <= set(
        made_of
    )
