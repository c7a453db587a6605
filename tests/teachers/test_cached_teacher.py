"""CachedTeacher and build_cache: exact answers, refusals, resumption, size."""

import json
import math
import os

import pytest
import torch
from torch import nn

from limbeck.errors import ArtifactError, LimbeckError, UsageError
from limbeck.files import digest
from limbeck.signals import TOP_K
from limbeck.teachers import AveragedTeacher, CachedTeacher, FrozenTeacher, build_cache, compact
from limbeck.teachers.cached import blended

ANY = frozenset({"logits"})


class Views:
    """A task in miniature: inputs (n, 6), noise that is a function of (seed, epoch, batch number) as augmentation."""

    augmentation = "noise 0.5"

    def __init__(self, n=23, salt=0, augmentation="noise 0.5"):
        self.x = torch.randn(n, 6, generator=torch.Generator().manual_seed(salt))
        self.augmentation = augmentation
        self.served = 0

    def size(self, split):
        return len(self.x)

    def digest(self):
        return digest(self.x.tolist())

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        n = min(len(self.x), limit or len(self.x))
        draw = torch.Generator().manual_seed(1000 * (seed or 0) + epoch)
        order = torch.arange(n) if seed is None else torch.randperm(n, generator=draw)
        for number in range(skip, math.ceil(n / batch_size)):
            index = order[number * batch_size : (number + 1) * batch_size]
            x = self.x[index]
            if augment:
                x = x + 0.5 * torch.randn(
                    x.shape, generator=torch.Generator().manual_seed(10**6 * seed + 1000 * epoch + number)
                )
            self.served += 1
            yield {"pixel_values": x, "labels": index % 3, "index": index}


class Tokens(Views):
    """Sequences of two lengths, so that shards have to fill up."""

    augmentation = "none"

    def __init__(self):
        super().__init__(n=8, augmentation="none")
        self.ids = torch.randint(1, 50, (8, 7), generator=torch.Generator().manual_seed(3))

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        for number in range(skip, 4):
            index = torch.arange(2 * number, 2 * number + 2)
            yield {"input_ids": self.ids[index, : 4 + number], "index": index}


class Reader(nn.Module):
    """Token scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 6), nn.Linear(6, 300)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def network(classes=9, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, classes))


def training(task, epochs, seed=0, batch_size=5, augment=True):
    for epoch in range(epochs):
        for batch in task.batches("train", batch_size, seed=seed, epoch=epoch, augment=augment):
            yield batch | {"epoch": epoch}


SETTINGS = {"passes": 3, "seed": 7, "batch_size": 5, "progress": False, "shard_rows": 10}


def same(settings):
    return {k: v for k, v in settings.items() if k in ("seed", "batch_size", "augment", "limit")}


def test_every_augmented_view_is_answered_exactly(tmp_path):
    task, teacher = Views(), FrozenTeacher(network())
    cached = build_cache(teacher, task, tmp_path, dtype="float32", names=["1"], **SETTINGS)
    for batch in training(task, 3, seed=7):
        names = frozenset({"logits", "1"})
        ours, theirs = cached.signals(batch, names), teacher.signals(batch, names)
        assert torch.equal(ours.logits, theirs.logits)
        assert torch.equal(ours["1"], theirs["1"])
    views = [b["pixel_values"][b["index"].argsort()] for b in training(task, 2, seed=7, batch_size=23)]
    assert not torch.equal(views[0], views[1])  # the epochs do differ, so the test above says something


def test_answers_from_several_shards_inside_autocast(tmp_path):
    """Stored float16 is no type that autocast on a CPU can join."""
    task, teacher = Views(), FrozenTeacher(nn.Linear(6, 3))
    cached = build_cache(teacher, task, tmp_path / "c", augment=False, batch_size=4, shard_rows=8, progress=False)
    batch = next(task.batches("train", 23))
    plain = cached.signals({**batch, "epoch": 0}, ANY).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cached.signals({**batch, "epoch": 0}, ANY).logits, plain)


def test_half_precision_is_within_its_rounding(tmp_path):
    task, teacher = Views(), FrozenTeacher(network())
    cached = build_cache(teacher, task, tmp_path, **SETTINGS)
    for batch in training(task, 3, seed=7):
        want = teacher.signals(batch, ANY).logits
        spread = want.amax(-1, keepdim=True) - want
        error = (cached.signals(batch, ANY).logits - want).abs()
        assert bool((error <= 2**-11 * spread + 1e-6).all())


def test_without_augmentation_one_pass_serves_every_epoch_seed_and_batch_size(tmp_path):
    task, teacher = Views(), FrozenTeacher(network())
    build_cache(teacher, task, tmp_path, augment=False, dtype="float32", **SETTINGS)
    cached = CachedTeacher(tmp_path, task, augment=False, seed=3, batch_size=4, teacher=teacher)
    assert cached.passes == 1
    for batch in training(task, 4, seed=3, batch_size=4, augment=False):
        torch.testing.assert_close(cached.signals(batch, ANY).logits, teacher.signals(batch, ANY).logits)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [40, 300, 70000])
def test_top_k_keeps_the_mass_of_the_rest_exact(temperature, classes):
    z = 3 * torch.randn(4, classes)
    entries = compact.encode(z, top_k=5, temperature=temperature, dtype="float32")
    assert entries["classes"].dtype == {40: torch.uint8, 300: torch.uint16, 70000: torch.int32}[classes]
    p = torch.softmax(z.double() / temperature, -1)
    q = torch.softmax(compact.decode(entries, classes).double() / temperature, -1)
    kept = z.topk(5).indices
    torch.testing.assert_close(q.gather(-1, kept), p.gather(-1, kept), rtol=1e-5, atol=0)
    torch.testing.assert_close(1 - q.gather(-1, kept).sum(-1), 1 - p.gather(-1, kept).sum(-1), rtol=1e-5, atol=1e-9)


def test_extreme_logits_stay_finite_and_keep_their_order():
    z = torch.tensor([[1e6, -1e6, 0.0, 3.0], [-1e4, 1e4, 1e4 - 1, 0.0]])
    back = compact.decode(compact.encode(z), 4)
    assert bool(back.isfinite().all())
    assert torch.equal(back.argmax(-1), z.argmax(-1))
    assert float(back[1, 1] - back[1, 2]) == 1


def test_top_k_from_disk_and_its_bytes(tmp_path):
    task, teacher = Views(n=400), FrozenTeacher(network(300))
    settings = SETTINGS | {"shard_rows": 10**6, "passes": 2}
    cached = build_cache(teacher, task, tmp_path, top_k=5, **settings)
    for batch in training(task, 2, seed=7):
        want = torch.log_softmax(teacher.signals(batch, ANY).logits, -1)
        have = torch.log_softmax(cached.signals(batch, ANY).logits, -1)
        kept = want.topk(5).indices
        torch.testing.assert_close(have.gather(-1, kept), want.gather(-1, kept), rtol=2e-3, atol=2e-3)
    on_disk = sum(os.path.getsize(f) for f in tmp_path.glob("*.safetensors"))
    assert cached.bytes == on_disk
    assert cached.bytes_per_sample == on_disk / 800
    exact = 5 * 2 + 5 * 2 + 4 + 4 + 4  # values, classes, top, rest, index
    assert exact <= cached.bytes_per_sample < exact + 1


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_top_k_can_be_read_as_it_is_kept(tmp_path, dtype):
    """An objective that decodes some rows at a time never holds the whole logits."""
    task, settings = Tokens(), {"batch_size": 2, "progress": False, "dtype": dtype}
    cached = build_cache(FrozenTeacher(Reader()), task, tmp_path / "c", top_k=5, **settings)
    for batch in task.batches("train", 2):
        found = cached.signals(batch, frozenset({"logits", *TOP_K}))
        values, classes, rest = (found[name] for name in TOP_K)
        assert values.shape == (*batch["input_ids"].shape, 5) and values.dtype == torch.float32
        decoded = rest.expand_as(found.logits).clone().scatter_(-1, classes, values)
        assert torch.equal(decoded, found.logits)
        assert set(cached.signals(batch, frozenset(TOP_K))) == set(TOP_K)
    whole = build_cache(FrozenTeacher(Reader()), task, tmp_path / "w", **settings)
    with pytest.raises(UsageError, match="top_k"):
        whole.signals(batch, frozenset(TOP_K))


def test_sequences_of_several_lengths(tmp_path):
    task = Tokens()
    torch.manual_seed(0)
    teacher = FrozenTeacher(Reader())
    cached = build_cache(teacher, task, tmp_path, top_k=4, names=["embed"], shard_rows=4, batch_size=2, progress=False)
    names = frozenset({"logits", "embed"})
    for batch in task.batches("train", 2):
        ours, theirs = cached.signals(batch, names), teacher.signals(batch, names)
        assert ours.logits.shape == theirs.logits.shape
        torch.testing.assert_close(ours["embed"], theirs["embed"], rtol=1e-3, atol=1e-3)
        assert torch.equal(ours.logits.argmax(-1), theirs.logits.argmax(-1))
    mixed = {"input_ids": task.ids[[7, 0], :7], "index": torch.tensor([7, 0])}
    both = cached.signals(mixed, names)
    assert both.logits.shape == (2, 7, 300)
    want = teacher.signals({"input_ids": task.ids[[0], :4]}, names)
    torch.testing.assert_close(both["embed"][1, :4], want["embed"][0], rtol=1e-3, atol=1e-3)


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
