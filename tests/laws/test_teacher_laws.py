"""Laws that every teacher keeps. A new public teacher without an entry in TEACHERS fails the first test."""

import copy
import inspect

import pytest
import torch
from torch import nn

import limbeck.teachers as room
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.signals import Signals
from limbeck.teachers import (
    Annotations,
    AveragedTeacher,
    CachedTeacher,
    ClassMeans,
    EnsembleTeacher,
    EpochSnapshot,
    FrozenTeacher,
    PastPredictions,
    SubclassTeacher,
    build_cache,
)
from limbeck.teachers.subclasses import Projections

BATCH = {
    "pixel_values": torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),
    "index": torch.arange(4),
    "labels": torch.arange(4),
    "epoch": 0,
}


class Four:
    """A task of four examples."""

    augmentation = "none"

    def size(self, split):
        return 4

    def digest(self):
        return digest("four")

    def batches(self, split, batch_size, **_):
        yield {k: v for k, v in BATCH.items() if k != "epoch"}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))


def averaged(tmp_path):
    teacher = AveragedTeacher(0.9)
    teacher.start(network())
    return teacher


def snapshot(tmp_path):
    teacher = EpochSnapshot()
    teacher.start(network())
    return teacher


def remembering(tmp_path):
    teacher = PastPredictions(4, 5)
    teacher.observe(BATCH, Signals({"logits": torch.randn(4, 5)}))
    return teacher


def splitting(tmp_path):
    return SubclassTeacher(FrozenTeacher(network()), "0", Projections(torch.randn(5, 8), torch.randn(5, 8, 3)))


# name: class, how one is made, the name of a hidden signal ("logits" where there is none)
TEACHERS = {
    "frozen": (FrozenTeacher, lambda _: FrozenTeacher(network()), "0"),
    "frozen-bf16": (FrozenTeacher, lambda _: FrozenTeacher(network(), precision="bf16"), "0"),
    "averaged": (AveragedTeacher, averaged, "0"),
    "ensemble": (EnsembleTeacher, lambda _: EnsembleTeacher([FrozenTeacher(network(s)) for s in (0, 1)]), "1.0"),
    "subclasses": (SubclassTeacher, splitting, "subclasses"),
    "annotations": (
        Annotations,
        lambda _: Annotations({"aspects": torch.randn(4, 3)}, FrozenTeacher(network())),
        "0",
    ),
    "annotations-alone": (
        Annotations,
        lambda _: Annotations({"aspects": torch.randn(4, 3), "logits": torch.randn(4, 5)}),
        "aspects",
    ),
    "snapshot": (EpochSnapshot, snapshot, "0"),
    "class_means": (ClassMeans, lambda _: ClassMeans(FrozenTeacher(network()), torch.randn(5, 8)), "0"),
    "past": (PastPredictions, remembering, "logits"),
    "cached": (
        CachedTeacher,
        lambda path: build_cache(FrozenTeacher(network()), Four(), path, names=["0"], progress=False),
        "0",
    ),
}


@pytest.fixture(params=TEACHERS)
def made(request, tmp_path):
    """A teacher and the name of one of its hidden signals."""
    _, make, hidden = TEACHERS[request.param]
    return make(tmp_path), hidden


def hooks(teacher) -> int:
    if isinstance(teacher, EnsembleTeacher):
        return sum(hooks(member) for member in teacher.teachers)
    modules = teacher.modules() or {"model": getattr(teacher, "model", nn.Identity())}
    model = nn.ModuleList(modules.values())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_every_public_teacher_has_an_entry():
    public = {getattr(room, name) for name in room.__all__} - {
        room.Teacher,
        room.RetokenizedTeacher,
    }  # reads text alone
    assert {t for t in public if inspect.isclass(t)} == {entry[0] for entry in TEACHERS.values()}


def test_it_speaks_the_whole_contract(made):
    teacher, _ = made
    assert isinstance(teacher.changes, bool)
    assert isinstance(teacher.digest(), str)
    teacher.to("cpu")
    teacher.start(network())
    teacher.after_step(network(), 1)
    assert isinstance(teacher.modules(), dict)


def test_only_what_was_asked_for_is_given(made):
    teacher, hidden = made
    for names in ({"logits"}, {hidden}, {"logits", hidden}):
        signals = teacher.signals(BATCH, frozenset(names))
        assert isinstance(signals, Signals)
        assert set(signals) == names
    assert teacher.signals(BATCH, frozenset({"logits"})).logits.shape == (4, 5)


def test_there_is_no_gradient(made):
    teacher, hidden = made
    signals = teacher.signals(BATCH, frozenset({"logits", hidden}))
    assert not any(value.requires_grad for value in signals.values())
    assert not any(value.is_inference() for value in signals.values())


def test_answers_are_the_same_every_time(made):
    """Dropout is off, statistics stand still, and nothing is drawn."""
    teacher, hidden = made
    names = frozenset({"logits", hidden})
    state = torch.get_rng_state()
    first, second = teacher.signals(BATCH, names), teacher.signals(BATCH, names)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in names)


def test_each_example_is_answered_by_itself(made):
    teacher, _ = made
    whole = teacher.signals(BATCH, frozenset({"logits"})).logits
    for i in range(4):
        one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in BATCH.items()}
        torch.testing.assert_close(
            teacher.signals(one, frozenset({"logits"})).logits[0], whole[i], rtol=1e-2, atol=1e-3
        )


def test_unknown_signals_are_refused_and_hooks_are_always_removed(made):
    teacher, hidden = made
    with pytest.raises(UsageError):
        teacher.signals(BATCH, frozenset({"logits", hidden, "zzz"}))
    assert hooks(teacher) == 0
    broken = BATCH | {"pixel_values": torch.randn(4, 7)}
    looks = not isinstance(teacher, (CachedTeacher, PastPredictions)) and hidden != "aspects"  # the others read tables
    if looks:
        with pytest.raises(RuntimeError):
            teacher.signals(broken, frozenset({hidden}))
    assert hooks(teacher) == 0
    teacher.signals(BATCH, frozenset({hidden}))
    assert hooks(teacher) == 0


def test_state_comes_back(made):
    teacher, hidden = made
    if not teacher.changes:
        assert teacher.modules() == {}
        return
    teacher.after_step(network(5), 3)
    saved = {name: copy.deepcopy(module.state_dict()) for name, module in teacher.modules().items()}
    fresh = {AveragedTeacher: lambda: AveragedTeacher(0.9), EpochSnapshot: EpochSnapshot}
    other = fresh.get(type(teacher), lambda: PastPredictions(4, 5))()
    other.start(network(2))
    for name, module in other.modules().items():
        module.load_state_dict(saved[name], strict=True)
    names = frozenset({"logits", hidden})
    ours, theirs = teacher.signals(BATCH, names), other.signals(BATCH, names)
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
