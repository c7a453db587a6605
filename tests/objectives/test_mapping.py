"""Other label sets and vocabularies: against the probabilities they stand for, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.objectives import DecoupledKD, MappedClasses, MappedTokens, SoftTargets, SortedTargets
from limbeck.objectives.mapping import merged
from limbeck.signals import Signals
from limbeck.teachers import EnsembleTeacher, FrozenTeacher


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def value(objective, student, teacher, batch=None, **more):
    return objective(Signals({"logits": student}), Signals({"logits": teacher, **more}), batch or {}).value


def test_merged_logits_are_those_of_summed_probabilities():
    z = drawn(3, 5).double()
    p = z.softmax(-1)
    found = merged(z, ((0, 3), 1, (2, 4))).softmax(-1)
    wanted = torch.stack([p[:, 0] + p[:, 3], p[:, 1], p[:, 2] + p[:, 4]], -1)
    assert torch.allclose(found, wanted)
    assert torch.equal(merged(z, (4, 0)), z[:, [4, 0]])
    extreme = merged(torch.tensor([[1e4, -1e4, 1e4]]), ((0, 2), 1))
    assert torch.allclose(extreme[0, 0], torch.tensor(1e4) + torch.tensor(2.0).log()) and extreme[0, 1] == -1e4


def test_subset_union_and_merged_against_a_plain_computation():
    """Student's classes: 0 is the teacher's 4, 1 its 0 and 2 together, 2 is unknown to it, 3 is its 1; nobody names its 3."""
    student, teacher = drawn(6, 4).double().requires_grad_(), drawn(6, 5, seed=1).double()
    found = value(MappedClasses(SoftTargets(1.0), classes=[4, [0, 2], None, 1]), student, teacher)
    p = teacher.softmax(-1)
    p = torch.stack([p[:, 4], p[:, 0] + p[:, 2], p[:, 1]], -1)
    p = p / p.sum(-1, keepdim=True)
    q = student.softmax(-1)[:, [0, 1, 3]]
    q = q / q.sum(-1, keepdim=True)
    wanted = (p * (p / q).log()).sum(-1).mean()
    assert torch.allclose(found, wanted, rtol=1e-6)
    for a, b in zip(torch.autograd.grad(found, student), torch.autograd.grad(wanted, student)):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-9) and (a[:, 2].abs() < 1e-12).all()


def test_by_name_and_identity():
    student, teacher = drawn(6, 3), drawn(6, 4, seed=1)
    named = MappedClasses(
        SoftTargets(2.0), student_names=("cat", "dog", "emu"), teacher_names=("fox", "emu", "cat", "dog")
    )
    assert named.mapping() == (2, 3, 1)
    by_hand = SoftTargets(2.0, classes=(2, 3, 1))
    assert torch.allclose(value(named, student, teacher), value(by_hand, student, teacher))
    same = MappedClasses(SoftTargets(2.0), classes=(0, 1, 2))
    assert torch.equal(value(same, student, teacher[:, :3]), value(SoftTargets(2.0), student, teacher[:, :3]))


def test_labels_are_renamed_and_unknown_ones_do_not_count():
    student, teacher = drawn(5, 4), drawn(5, 6, seed=1)
    labels = torch.tensor([0, 2, 3, 1, -100])
    mapped = MappedClasses(DecoupledKD(), classes=(5, 1, None, 0))
    found = value(mapped, student, teacher, {"labels": labels})
    kept = [0, 2, 3]
    wanted = value(
        DecoupledKD(), student[kept][:, [0, 1, 3]], teacher[kept][:, [5, 1, 0]], {"labels": torch.tensor([0, 2, 1])}
    )
    assert torch.allclose(found, wanted)
    everything = value(
        MappedClasses(SoftTargets(positions="all"), (5, 1, None, 0)), student, teacher, {"labels": labels}
    )
    plain = value(SoftTargets(), student[:, [0, 1, 3]], teacher[:, [5, 1, 0]])
    assert torch.allclose(everything, plain)


def test_teachers_of_different_parts_of_a_union():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 3)
    ensemble = EnsembleTeacher([FrozenTeacher(first), FrozenTeacher(second)])
    objective = MappedClasses(SoftTargets(1.0), (0, 1, None, None, None), teacher="0.logits") + MappedClasses(
        SoftTargets(1.0), (None, None, 0, 1, 2), teacher="1.logits"
    )
    batch, student = {"x": drawn(6, 4)}, drawn(6, 5, seed=2)
    loss = objective(Signals({"logits": student}), ensemble.signals(batch, objective.reads.teacher), batch)
    wanted = value(SoftTargets(1.0), student[:, :2], first(batch["x"])) + value(
        SoftTargets(1.0), student[:, 2:], second(batch["x"])
    )
    assert torch.allclose(loss.value, wanted)


def test_only_aligned_positions_count():
    student, teacher = drawn(2, 4, 3), drawn(2, 4, 3, seed=1)
    aligned = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    mask = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
    for objective, plain in (
        (MappedClasses(SoftTargets(), (0, 1, 2), aligned="aligned"), SoftTargets()),
        (SortedTargets(aligned="aligned"), SortedTargets()),
    ):
        found = value(objective, student, teacher, {"attention_mask": mask}, aligned=aligned)
        rows = [(0, 0), (1, 3)]
        at = tuple(torch.tensor(x) for x in zip(*rows))
        assert torch.allclose(found, value(plain, student[at], teacher[at]))


def test_sorted_targets_against_a_loop():
    student, teacher = drawn(4, 3).double().requires_grad_(), drawn(4, 5, seed=1).double()
    found = value(SortedTargets(2.0), student, teacher)
    rows = []
    for a, b in zip(student, teacher):
        q = [*sorted((a / 2).softmax(-1), reverse=True), 0.0, 0.0]
        p = sorted((b / 2).softmax(-1), reverse=True)
        rows.append(sum(abs(x - y) for x, y in zip(p, q)))
    wanted = torch.stack(rows).mean()
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert torch.allclose(torch.autograd.grad(found, student)[0], torch.autograd.grad(wanted, student)[0], rtol=1e-5)
    order = torch.tensor([4, 1, 0, 3, 2])
    assert torch.allclose(value(SortedTargets(), student, teacher), value(SortedTargets(), student, teacher[:, order]))


def test_sorted_targets_are_the_smallest_distance_over_all_pairings_of_words():
    student, teacher = drawn(1, 4).double(), drawn(1, 5, seed=1).double()
    q, p = torch.cat([student.softmax(-1)[0], torch.zeros(1)]), teacher.softmax(-1)[0]
    pairings = (float((p - q[list(order)]).abs().sum()) for order in itertools.permutations(range(5)))
    assert math.isclose(float(value(SortedTargets(), student, teacher)), min(pairings), rel_tol=1e-6)


def test_sorted_targets_of_answers_of_equal_length_are_the_mean_over_each_answer_and_then_over_answers():
    """As the authors' code reduces; of unequal length a short answer's positions would count more there."""
    student, teacher, labels = drawn(3, 6, 4), drawn(3, 6, 5, seed=1), torch.full((3, 6), -100)
    for answer, begin in enumerate((0, 1, 2)):
        labels[answer, begin : begin + 4] = 0
    found = value(SortedTargets(), student, teacher, {"labels": labels})
    each = [
        value(SortedTargets(), student[i : i + 1], teacher[i : i + 1], {"labels": labels[i : i + 1]}) for i in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())


def test_what_does_not_fit_is_refused():
    mapped = MappedClasses(SoftTargets(), classes=(0, 1, 5))
    with pytest.raises(UsageError, match="3 entries and the student 4"):
        value(mapped, drawn(2, 4), drawn(2, 6))
    with pytest.raises(UsageError, match="class 5; it has 5"):
        value(mapped, drawn(2, 3), drawn(2, 5))
    with pytest.raises(UsageError, match="RetokenizedTeacher"):
        value(mapped, drawn(2, 4, 3), drawn(2, 5, 6))
    with pytest.raises(UsageError, match="positions must be the same"):
        value(SortedTargets(), drawn(2, 4, 3), drawn(2, 5, 6))
    with pytest.raises(UsageError, match="aligned"):
        value(SortedTargets(aligned="aligned"), drawn(2, 3), drawn(2, 3), aligned=torch.ones(2))
    with pytest.raises(Exception, match="no tokenizer could be loaded"):
        MappedTokens(SoftTargets(), "/nowhere/a", "/nowhere/b").mapping()
