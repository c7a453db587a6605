"""Annotations: each example gets its own row, and a classifier answers questions about sets of its classes."""

import pytest
import torch
from torch import nn

from limbeck.beds.images import DIGITS
from limbeck.errors import UsageError
from limbeck.objectives import AtExit, BinaryTargets, CrossEntropy
from limbeck.teachers import Annotations, FrozenTeacher, membership_logits
from limbeck.training import Distil, Trainer

TABLE = torch.arange(12.0).reshape(4, 3)


def test_each_example_gets_its_own_row_whatever_its_view_shows():
    teacher = Annotations({"aspects": TABLE, "map": torch.zeros(4, 2, 2)})
    for view in (torch.zeros(3, 2), torch.ones(3, 2)):
        found = teacher.signals({"x": view, "index": torch.tensor([2, 0, 2])}, frozenset({"aspects", "map"}))
        assert found["aspects"].tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
        assert found["map"].shape == (3, 2, 2)


def test_the_other_teacher_answers_the_rest():
    model = nn.Linear(2, 5)
    teacher = Annotations({"aspects": TABLE}, FrozenTeacher(model))
    batch = {"x": torch.randn(4, 2), "index": torch.arange(4)}
    found = teacher.signals(batch, frozenset({"aspects", "logits"}))
    torch.testing.assert_close(found.logits, model(batch["x"]).detach())
    assert torch.equal(found["aspects"], TABLE)
    assert teacher.digest() != Annotations({"aspects": TABLE}).digest() != Annotations({"aspects": TABLE + 1}).digest()


def test_nonsense_is_refused():
    for tables in ({}, {"a": TABLE, "b": TABLE[:2]}, {"a": torch.zeros(4)}):
        with pytest.raises(UsageError, match="tables"):
            Annotations(tables)
    with pytest.raises(UsageError, match="finite"):
        Annotations({"a": TABLE / 0})
    teacher = Annotations({"aspects": TABLE})
    with pytest.raises(UsageError, match="'logits'"):
        teacher.signals({"index": torch.arange(2)}, frozenset({"logits"}))
    with pytest.raises(UsageError, match="index"):
        teacher.signals({"x": torch.zeros(2)}, frozenset({"aspects"}))
    with pytest.raises(UsageError, match="4 examples"):
        teacher.signals({"index": torch.tensor([4])}, frozenset({"aspects"}))


def test_the_answer_to_a_question_is_the_probability_of_its_classes():
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sets = ((0,), (1, 4), (0, 1, 2, 3))
    found = membership_logits(logits, sets)
    expected = torch.stack([logits.softmax(-1)[:, list(entry)].sum(-1) for entry in sets], 1)
    torch.testing.assert_close(found.sigmoid(), expected)
    assert bool(membership_logits(torch.tensor([[1e4, -1e4, 0.0]]), ((0,), (1, 2))).isfinite().all())
    for wrong in ((), (0, 1, 2, 3, 4), (5,), (1, 1), (-1,)):
        with pytest.raises(UsageError, match="some, not all"):
            membership_logits(logits, (wrong,))


def test_it_trains_a_student_that_keeps_no_trace_of_the_questions():
    task = DIGITS.task()
    tables = {"aspects": torch.randn(task.size("train"), 4, generator=torch.Generator().manual_seed(0))}
    objective = CrossEntropy() + AtExit("fc:input", BinaryTargets(), teacher="aspects")
    student = DIGITS.student.make(1)
    names = list(student.state_dict())
    procedure = Distil(student, Annotations(tables), objective)
    history = Trainer(DIGITS.config(steps=3), seed=0, progress=False).run(procedure, task)
    assert history.steps[-1]["parts"]["AtExit(fc:input)"] > 0
    assert list(procedure.model().state_dict()) == names
