"""Adapters, hard targets and the discriminator against plain formulas, gradients too."""

import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.objectives import (
    CrossEntropy,
    Discriminator,
    HardTargets,
    OnSignal,
    PriorAdjusted,
    Scheduled,
    SoftTargets,
    WhereCorrect,
)
from limbeck.signals import Signals

N, C = 7, 4
COUNTS = (50, 20, 6, 2)


def example(seed=0):
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(N, C, generator=draw, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(N, C, generator=draw, dtype=torch.float64)
    return student, teacher, torch.randint(0, C, (N,), generator=draw)


def both(found, expected, student):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    slopes = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-6, atol=1e-7)


def loss(objective, student, teacher, labels, **more):
    batch = {"labels": labels, **more}
    return objective(Signals({"logits": student}), Signals({"logits": teacher}), batch).value


def kl(student, teacher):
    p = teacher.softmax(-1)
    return (p * (p.log() - student.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("strength", [-0.5, 1.0, 2.5])
def test_prior_adjusted_shifts_both_sides(strength):
    student, teacher, labels = example()
    shift = torch.tensor([strength * math.log(n) for n in COUNTS], dtype=torch.float64)
    found = loss(PriorAdjusted(CrossEntropy(), COUNTS, strength), student, teacher, labels)
    both(found, F.cross_entropy(student + shift, labels), student)
    found = loss(PriorAdjusted(SoftTargets(1.0), COUNTS, strength), student, teacher, labels)
    both(found, kl(student + shift, teacher + shift).mean(), student)


def test_equal_counts_change_nothing_and_other_ones_are_refused():
    student, teacher, labels = example()
    same = loss(PriorAdjusted(SoftTargets(2.0), (9,) * C, 2.0), student, teacher, labels)
    both(same, loss(SoftTargets(2.0), student, teacher, labels), student)
    with pytest.raises(UsageError, match="counts of 2 classes"):
        loss(PriorAdjusted(CrossEntropy(), (3, 4)), student, teacher, labels)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_where_correct_is_the_mean_over_who_is_right(side):
    student, teacher, labels = example(3)
    labels[:3] = (teacher if side == "teacher" else student)[:3].argmax(-1)
    right = (teacher if side == "teacher" else student).argmax(-1) == labels
    assert 0 < int(right.sum()) < N
    found = loss(WhereCorrect(SoftTargets(1.0), side), student, teacher, labels)
    both(found, kl(student, teacher)[right].mean(), student)


def test_where_nobody_is_right_nothing_is_learned():
    student, teacher, _ = example()
    found = loss(WhereCorrect(SoftTargets(1.0)), student, teacher, (teacher.argmax(-1) + 1) % C)
    assert float(found.detach()) == 0 and float(torch.autograd.grad(found, student)[0].abs().max()) == 0
    with pytest.raises(UsageError, match="no true class"):
        loss(WhereCorrect(SoftTargets(1.0)), student, teacher, torch.full((N, C), 0.25))


def test_the_three_of_an_expert_nest_as_in_mdcs():
    student, teacher, labels = example(5)
    shift = 2.5 * torch.tensor(COUNTS, dtype=torch.float64).log()
    right = (teacher + shift).argmax(-1) == labels
    objective = OnSignal("heads.2", PriorAdjusted(WhereCorrect(SoftTargets(1.0)), COUNTS, 2.5), "heads.2")
    assert objective.reads.student == objective.reads.teacher == {"heads.2"}
    found = objective(Signals({"heads.2": student}), Signals({"heads.2": teacher}), {"labels": labels}).value
    both(found, kl(student + shift, teacher + shift)[right].mean(), student)


def test_on_signal_reads_the_named_outputs_and_nothing_else():
    student, teacher, labels = example()
    objective = OnSignal("head", CrossEntropy())
    assert (objective.reads.student, objective.reads.teacher) == ({"head"}, frozenset())
    both(objective(Signals({"head": student}), Signals({}), {"labels": labels}).value, F.cross_entropy(student, labels), student)  # fmt: skip
    two = OnSignal("head", SoftTargets(1.0), "1.logits") + OnSignal("head", CrossEntropy())
    parts = two(Signals({"head": student}), Signals({"1.logits": teacher}), {"labels": labels}).parts
    assert set(parts) == {"SoftTargets(head)", "CrossEntropy(head)"}


def test_hard_targets_are_cross_entropy_with_the_teachers_class():
    student, teacher, labels = example()
    chosen = teacher.argmax(-1)
    both(loss(HardTargets(), student, teacher, labels), F.cross_entropy(student, chosen), student)
    weights = (0.5, 1.0, 2.0, 7.0)
    expected = F.cross_entropy(student, chosen, weight=torch.tensor(weights, dtype=torch.float64))
    both(loss(HardTargets(weights), student, teacher, labels), expected, student)
    unlabelled = torch.full_like(labels, -100)
    assert float(loss(HardTargets(), student, teacher, unlabelled)) == 0
    both(loss(HardTargets(positions="all"), student, teacher, unlabelled), F.cross_entropy(student, chosen), student)
    with pytest.raises(UsageError, match="2 weights"):
        loss(HardTargets((1.0, 2.0)), student, teacher, labels)


def test_scheduled_counts_from_its_beginning_to_its_end():
    student, teacher, labels = example()
    full = float(loss(SoftTargets(), student, teacher, labels))
    objective = Scheduled(SoftTargets(), begin=2, end=8, ramp=4)
    shares = [float(loss(objective, student, teacher, labels, epoch=e)) / full for e in range(9)]
    assert shares == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 0])
    before = loss(objective, student, teacher, labels, epoch=0)
    assert float(torch.autograd.grad(before, student)[0].abs().max()) == 0
    with pytest.raises(UsageError, match="epoch"):
        loss(objective, student, teacher, labels)


@pytest.mark.parametrize("adversarial", [True, False])
def test_the_discriminator_learns_to_tell_and_the_student_not_to_be_told(adversarial):
    student, teacher, labels = (x.float() if x.is_floating_point() else x for x in example())
    student = student.detach().requires_grad_()
    objective = Discriminator(adversarial, (5, 3))
    signals = Signals({"logits": student}), Signals({"logits": teacher})
    network = objective.connectors(*signals)["discriminator"]
    found = objective(*signals, {"labels": labels}, {"discriminator": network}).value
    scores = torch.cat([network(student), network(teacher)]).squeeze(1)
    is_student = torch.tensor([1.0] * N + [0.0] * N)
    expected = F.binary_cross_entropy(scores.sigmoid(), is_student)
    torch.testing.assert_close(found, expected)
    ours, plain = (torch.autograd.grad(v, student, retain_graph=True)[0] for v in (found, expected))
    torch.testing.assert_close(ours, -plain if adversarial else plain)
    for one, other in zip(*(torch.autograd.grad(v, list(network.parameters()), retain_graph=True) for v in (found, expected))):  # fmt: skip
        torch.testing.assert_close(one, other)


def test_the_discriminators_widths_follow_the_classes():
    made = Discriminator().connectors(*[Signals({"logits": torch.zeros(2, 1000)})] * 2)["discriminator"]
    assert [layer.out_features for layer in made if hasattr(layer, "out_features")] == [125, 15, 1]
