"""Frozen, averaged and ensemble teachers against their definitions."""

import copy

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.signals import capture
from limbeck.teachers import AveragedTeacher, EnsembleTeacher, FrozenTeacher
from limbeck.teachers.frozen import model_digest

X = {"pixel_values": torch.randn(4, 6, generator=torch.Generator().manual_seed(1))}
LOGITS = frozenset({"logits"})


def network(seed=0, classes=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))


def test_frozen_answers_as_the_model_in_evaluation_mode():
    model = network()
    model(torch.randn(32, 6))  # moves the statistics
    teacher = FrozenTeacher(model.train())
    model.train()  # somebody else switches it back
    assert torch.equal(teacher.signals(X, LOGITS).logits, copy.deepcopy(model).eval()(X["pixel_values"]))
    statistics = model[1].running_mean.clone()
    teacher.signals(X, LOGITS)
    assert torch.equal(model[1].running_mean, statistics)
    assert all(p.requires_grad for p in model.parameters())  # nothing else about it is changed


def test_frozen_precision_is_its_own():
    exact, rough = FrozenTeacher(network(), "fp32"), FrozenTeacher(network(), "bf16")
    assert rough.signals(X, LOGITS).logits.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert exact.signals(X, LOGITS).logits.dtype == torch.float32
        assert FrozenTeacher(network()).signals(X, LOGITS).logits.dtype == torch.bfloat16
    torch.testing.assert_close(
        rough.signals(X, LOGITS).logits.float(), exact.signals(X, LOGITS).logits, rtol=0.1, atol=0.05
    )


def test_a_partial_teacher_says_the_same_and_runs_no_further():
    model, ran = network(), []
    model[3].register_forward_hook(lambda *_: ran.append(3))
    names = frozenset({"0", "2"})
    whole, part = (FrozenTeacher(model, partial=p).signals(X, names) for p in (False, True))
    assert ran == [3] and all(torch.equal(whole[name], part[name]) for name in names)
    assert FrozenTeacher(model, partial=True).digest() == FrozenTeacher(model).digest()


def test_nothing_is_run_when_nothing_is_asked_for():
    assert len(FrozenTeacher(network()).signals({"pixel_values": torch.randn(4, 99)}, frozenset())) == 0


def test_digests_tell_teachers_apart():
    base = FrozenTeacher(network()).digest()
    assert base == FrozenTeacher(network()).digest()
    statistics, weight, activation = network(), network(), network()
    statistics[1].running_mean += 1
    with torch.no_grad():
        weight[3].bias[0] += 1e-6
    activation[2] = nn.GELU()
    others = [statistics, weight, activation, network(1)]
    assert len({base, FrozenTeacher(network(), "bf16").digest(), *(FrozenTeacher(m).digest() for m in others)}) == 6
    assert model_digest(network()) == model_digest(copy.deepcopy(network()))


def test_average_follows_its_formula_with_buffers():
    student, teacher = network(), AveragedTeacher(0.8, warmup=False)
    teacher.start(student)
    expected = {k: v.double().clone() for k, v in student.state_dict().items()}
    for step in range(1, 4):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        student(torch.randn(16, 6))
        teacher.after_step(student, step)
        for name, value in student.state_dict().items():
            expected[name] = 0.8 * expected[name] + 0.2 * value.double() if value.is_floating_point() else value
    for name, value in teacher.average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name].double(), rtol=1e-5, atol=1e-6)
    assert int(teacher.average[1].num_batches_tracked) == 3
    assert not teacher.average.training
    assert all(p.grad is None for p in teacher.average.parameters())


def test_warmup_forgets_the_random_start():
    student, teacher = network(), AveragedTeacher(0.999)
    teacher.start(student)
    weights = []
    for step in range(1, 6):  # with 1 - 1/(t+1) the average is the plain mean of the start and all steps
        with torch.no_grad():
            student[0].weight.normal_()
        weights.append(student[0].weight.detach().clone())
        teacher.after_step(student, step)
    start = network()[0].weight.detach()
    torch.testing.assert_close(teacher.average[0].weight, torch.stack([start, *weights]).mean(0), rtol=1e-4, atol=1e-5)


def test_the_average_is_a_copy_and_follows_only_when_told():
    student, teacher = network(), AveragedTeacher(0.5)
    with pytest.raises(UsageError, match="start"):
        teacher.signals(X, LOGITS)
    teacher.start(student)
    before = teacher.signals(X, LOGITS).logits
    with torch.no_grad():
        student[3].weight.zero_()
    assert torch.equal(teacher.signals(X, LOGITS).logits, before)
    teacher.start(student)  # a second start does nothing
    assert torch.equal(teacher.signals(X, LOGITS).logits, before)
    assert torch.equal(capture(student, X).logits[0], student[3].bias)
    for decay in (1.0, -0.1, True, "0.9"):
        with pytest.raises(UsageError, match="decay"):
            AveragedTeacher(decay)
    with pytest.raises(UsageError, match="changed"):
        teacher.after_step(nn.Linear(6, 5), 1)


def test_ensemble_is_the_weighted_mean_of_probabilities():
    members = [network(s).eval() for s in range(3)]
    teacher = EnsembleTeacher([FrozenTeacher(m) for m in members], weights=(1, 2, 5))
    mean = sum(w * torch.softmax(m(X["pixel_values"]).double(), -1) for w, m in zip((1, 2, 5), members)) / 8
    logits = teacher.signals(X, LOGITS).logits
    torch.testing.assert_close(torch.softmax(logits.double(), -1), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(logits.double().exp(), mean, rtol=1e-5, atol=1e-7)  # they are log-probabilities


def test_ensemble_asks_only_the_members_it_must():
    class Silent(FrozenTeacher):
        def signals(self, batch, names):
            raise AssertionError("must not run")

    teacher = EnsembleTeacher([FrozenTeacher(network()), Silent(network(1))])
    assert set(teacher.signals(X, frozenset({"0.0", "0.3:input"}))) == {"0.0", "0.3:input"}


def test_ensembles_that_cannot_be_are_refused():
    one, other = FrozenTeacher(network()), FrozenTeacher(network(1, classes=7))
    with pytest.raises(UsageError, match="two or more"):
        EnsembleTeacher([one])
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))):
        with pytest.raises(UsageError, match="weights"):
            EnsembleTeacher([one, one], weights)
    with pytest.raises(UsageError, match="classes"):
        EnsembleTeacher([one, other]).signals(X, LOGITS)
    for name in ("layer", "2.layer", "x.0"):
        with pytest.raises(UsageError, match="member"):
            EnsembleTeacher([one, one]).signals(X, frozenset({name}))


def test_an_ensemble_changes_when_a_member_does():
    averaged = AveragedTeacher(0.5)
    teacher = EnsembleTeacher([FrozenTeacher(network()), averaged])
    assert teacher.changes
    student = network(3)
    teacher.start(student)
    assert set(teacher.modules()) == {"1.average"}
    before = teacher.signals(X, LOGITS).logits
    with torch.no_grad():
        student[3].weight.add_(1)
    teacher.after_step(student, 1)
    assert not torch.equal(teacher.signals(X, LOGITS).logits, before)


def test_what_describes_the_examples_never_reaches_the_model():
    described = {"epoch": 3, "index": torch.arange(4), "labels": torch.zeros(4), "sample_weight": torch.ones(4)}
    teacher = FrozenTeacher(network())
    assert torch.equal(teacher.signals(described | X, LOGITS).logits, teacher.signals(X, LOGITS).logits)
