"""Laws that every public objective keeps. A new objective without an entry in CASES fails the first test."""

import copy
import dataclasses
import inspect

import pytest
import torch
from objective_cases import CASES, TOKENS, B, Case, D, L
from torch import Tensor

import limbeck.objectives as room
from limbeck.errors import UsageError
from limbeck.objectives import (
    MappedTokens,
    MeanSquaredError,
    Objective,
)
from limbeck.objectives.logits.targets import TeacherTargets
from limbeck.signals import Signals


def cases(wanted):
    """Run a test over the cases that `wanted` accepts."""
    found = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", found.values(), ids=found)


every = cases(lambda case: True)
of_teachers = cases(lambda case: case.reads_teacher)
fixed = cases(lambda case: not case.learned)
per_example = cases(lambda case: case.per_example)


def example(case: Case, seed: int = 0, scale: float = 1.0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Student's signal, teacher's signal and a batch without masks."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(case.shape, generator=draw) for _ in range(2))
    labels = torch.randint(0, D, case.shape[:-1] if len(case.shape) < 4 else (B,), generator=draw)
    degrees = torch.rand(labels.shape, generator=draw)  # how private each target is
    return student, teacher, {"labels": labels, "index": torch.arange(B), "private": degrees}


def answers(case: Case, teacher: Tensor) -> Signals:
    """The teacher's signals. What else an objective reads of it (a reference's logits) is a function of each entry."""
    fixed = dict(case.constants)
    names = sorted((case.objective.reads.teacher or {case.signal}) - fixed.keys())
    return Signals({name: teacher * (-0.5) ** at for at, name in enumerate(names)} | fixed)


def value(case: Case, student: Tensor, teacher: Tensor, batch, objective: Objective | None = None) -> Tensor:
    objective = objective or case.objective
    own = Signals({case.signal: student, **dict(case.constants)})
    return objective(own, answers(case, teacher), batch, connectors(case, objective)).value


def connectors(case: Case, objective: Objective) -> dict[str, torch.nn.Module]:
    """The same connectors for a case in every test, also for sums of two of its kind."""
    if not case.learned:
        return {}
    torch.manual_seed(0)
    student, teacher, _ = example(case)
    made = case.objective.connectors(Signals({case.signal: student}), answers(case, teacher))
    return (
        made
        if objective is case.objective
        else {f"{i}_{n}": copy.deepcopy(m) for i in range(2) for n, m in made.items()}
    )


def gradient(case: Case, student: Tensor, teacher: Tensor, batch) -> Tensor:
    student = student.clone().requires_grad_()
    value(case, student, teacher, batch).backward()
    return student.grad


def take(batch, rows):
    return {name: entry[rows] for name, entry in batch.items()}


def public_objectives():
    found = (getattr(room, name) for name in room.__all__)
    bases = ("Objective", "Sum")
    return {o for o in found if inspect.isclass(o) and issubclass(o, Objective) and o.__name__ not in bases}


def test_every_public_objective_has_a_case():
    known = {type(case.objective) for case in CASES.values()} | {MappedTokens}  # which is MappedClasses of two folders
    assert public_objectives() == known


@every
def test_it_is_a_frozen_dataclass_and_hashable(case):
    assert dataclasses.is_dataclass(case.objective)
    assert case.objective == dataclasses.replace(case.objective)
    hash(case.objective)
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.objective.name = "other"


@cases(lambda case: case.reads_teacher and case.distance and not case.learned)
def test_a_teacher_that_agrees_costs_nothing(case):
    student, _, batch = example(case)
    open_ = batch | {"private": torch.zeros_like(batch["private"])}  # a private target is not the teacher's
    assert abs(float(value(case, student, student.clone(), open_))) < 1e-6


@of_teachers
def test_a_teacher_that_differs_costs_something(case):
    student, teacher, batch = example(case)
    cost = value(case, student, teacher, batch).detach()
    assert abs(float(cost)) > 1e-3 if case.learned else float(cost) > 1e-3


@every
def test_weights_scale_and_weight_zero_removes(case):
    student, teacher, batch = example(case)
    alone = value(case, student, teacher, batch)
    torch.testing.assert_close(value(case, student, teacher, batch, 2.5 * case.objective), 2.5 * alone)
    doubled = value(case, student, teacher, batch, case.objective + case.objective)
    torch.testing.assert_close(doubled, 2 * alone)
    other = MeanSquaredError()
    both = 0 * case.objective + other
    assert both.reads == other.reads
    signals = Signals({"logits": student}), Signals({"logits": teacher})
    if len(case.shape) < 4:
        torch.testing.assert_close(both(*signals, batch).value, other(*signals, batch).value)
    with pytest.raises(UsageError, match="weight 0"):
        value(case, student, teacher, batch, 0 * case.objective)


@every
def test_the_gradient_reaches_the_student_and_never_the_teacher(case):
    student, teacher, batch = example(case)
    student.requires_grad_(), teacher.requires_grad_()
    value(case, student, teacher, batch).backward()
    assert bool(student.grad.isfinite().all())
    assert float(student.grad.abs().max()) > 1e-6
    assert teacher.grad is None


@every
def test_order_of_the_batch_does_not_matter(case):
    student, teacher, batch = example(case)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        value(case, student[order], teacher[order], take(batch, order)), value(case, student, teacher, batch)
    )


@fixed
def test_order_of_the_classes_or_features_does_not_matter(case):
    student, teacher, batch = example(case)
    order = torch.tensor([2, 0, 3, 1])
    renamed = batch | {"labels": order.argsort()[batch["labels"]]}
    moved = (x.index_select(case.width_axis, order) for x in (student, teacher))
    torch.testing.assert_close(value(case, *moved, renamed), value(case, student, teacher, batch))


@per_example
def test_a_batch_is_the_mean_of_its_examples(case):
    student, teacher, batch = example(case)
    each = [value(case, student[i : i + 1], teacher[i : i + 1], take(batch, slice(i, i + 1))) for i in range(B)]
    torch.testing.assert_close(torch.stack(each).mean(), value(case, student, teacher, batch))


@every
def test_an_example_of_weight_zero_is_not_there(case):
    student, teacher, batch = example(case)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1])
    kept = weight.nonzero().squeeze(1)
    student[weight == 0], teacher[weight == 0] = torch.nan, torch.nan
    weighted = batch | {"sample_weight": weight}
    expected = value(case, student[kept], teacher[kept], take(batch, kept))
    torch.testing.assert_close(value(case, student, teacher, weighted), expected)
    slope = gradient(case, student, teacher, weighted)
    assert float(slope[weight == 0].abs().max()) == 0
    torch.testing.assert_close(slope[kept], gradient(case, student[kept], teacher[kept], take(batch, kept)))


@per_example
def test_weights_count_as_repetitions(case):
    student, teacher, batch = example(case)
    rows = torch.tensor([0, 1, 1, 1, 2, 3, 4, 5])
    expected = value(case, student[rows], teacher[rows], take(batch, rows))
    weighted = batch | {"sample_weight": torch.tensor([1.0, 3, 1, 1, 1, 1])}
    torch.testing.assert_close(value(case, student, teacher, weighted), expected)


def padding_is_absent(case: Case, masked: dict[str, Tensor]) -> None:
    """The last two tokens do not count: same loss as without them, no gradient to them, not even from NaN."""
    student, teacher, batch = example(case)
    student[:, 3:], teacher[:, 3:] = torch.nan, torch.nan
    padded, cut = batch | masked, batch | {name: batch[name][:, :3] for name in ("labels", "private")}
    torch.testing.assert_close(value(case, student, teacher, padded), value(case, student[:, :3], teacher[:, :3], cut))
    slope = gradient(case, student, teacher, padded)
    assert float(slope[:, 3:].abs().max()) == 0
    torch.testing.assert_close(slope[:, :3], gradient(case, student[:, :3], teacher[:, :3], cut))


@cases(lambda case: case.shape is TOKENS)
def test_padded_tokens_contribute_nothing(case):
    mask = torch.ones(B, L, dtype=torch.long)
    mask[:, 3:] = 0
    padding_is_absent(case, {"attention_mask": mask})


@cases(lambda case: case.shape is TOKENS and case.counts_labels)
def test_ignored_labels_contribute_nothing(case):
    labels = example(case)[2]["labels"].clone()
    labels[:, 3:] = -100
    padding_is_absent(case, {"labels": labels})


@every
def test_a_batch_where_nothing_counts_costs_nothing(case):
    student, teacher, batch = example(case)
    nothing = batch | {"sample_weight": torch.zeros(B)}
    assert float(value(case, student, teacher, nothing).detach()) == 0
    assert float(gradient(case, student, teacher, nothing).abs().max()) == 0


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(case, dtype):
    student, teacher, batch = example(case, scale=3.0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    loss = value(case, student, teacher, batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, value(case, student.float(), teacher.float(), batch), rtol=1e-6, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value(case, student, teacher, batch)
    torch.testing.assert_close(inside, loss, rtol=1e-6, atol=1e-7)


@every
def test_extreme_values_give_no_nan(case):
    for draw in range(3):
        student, teacher, batch = example(case, seed=draw)
        student, teacher = 1e4 * student.sign(), 1e4 * teacher.sign()
        assert bool(value(case, student, teacher, batch).isfinite())
        assert bool(gradient(case, student, teacher, batch).isfinite().all())


@of_teachers
def test_it_reads_what_it_says(case):
    student, teacher, batch = example(case)
    empty = Signals({})
    with pytest.raises(UsageError, match="signal"):
        case.objective(empty, Signals({case.signal: teacher}), batch)
    with pytest.raises(UsageError, match="signal"):
        case.objective(Signals({case.signal: student}), empty, batch)


UNMAPPED = {type(case.objective): case for case in CASES.values() if isinstance(case.objective, TeacherTargets)}


@pytest.mark.parametrize("case", UNMAPPED.values(), ids=[made.__name__ for made in UNMAPPED])
def test_a_teacher_of_other_classes_is_refused_without_a_mapping(case):
    student, teacher, batch = example(case)
    wider = torch.cat([teacher, teacher[..., :1]], dim=-1)
    with pytest.raises(UsageError, match="student has 4 classes and the teacher 5"):
        value(case, student, wider, batch)
