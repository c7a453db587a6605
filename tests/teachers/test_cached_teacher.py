"""CachedTeacher and build_cache: exact answers and their size."""

import os

import pytest
import torch
from cached_examples import ANY, SETTINGS, Reader, Tokens, Views, network, training
from torch import nn

from limbeck.errors import UsageError
from limbeck.signals import TOP_K
from limbeck.teachers import CachedTeacher, FrozenTeacher, build_cache, compact


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
