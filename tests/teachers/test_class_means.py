"""ClassMeans: the means are those of each class, and every example gets that of its own."""

import pytest
import torch
from torch import nn

from limbeck.beds.images import DIGITS
from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, NormDirection
from limbeck.teachers import ClassMeans, FrozenTeacher, class_means
from limbeck.training import Distil, Trainer


class Pairs:
    """Six examples of two classes in batches of four."""

    name, classes = "pairs", ("a", "b")
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1, 0, 1, 1])

    def batches(self, split, batch_size, **_):
        for at in range(0, 6, 4):
            yield {"x": self.x[at : at + 4], "labels": self.y[at : at + 4]}


def test_the_means_are_those_of_each_class():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    means = class_means(model, Pairs(), "0")
    with torch.no_grad():
        features = model[0](Pairs.x)
    for k in (0, 1):
        torch.testing.assert_close(means[k], features[Pairs.y == k].mean(0))


def test_a_class_without_examples_is_refused():
    task = Pairs()
    task.classes = ("a", "b", "c")
    with pytest.raises(UsageError, match="'c'"):
        class_means(nn.Sequential(nn.Linear(3, 2)), task, "0")


def test_each_example_gets_the_mean_of_its_class():
    means = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    teacher = ClassMeans(FrozenTeacher(nn.Linear(3, 4)), means)
    names = frozenset({"class_mean"})
    hard = teacher.signals({"x": Pairs.x[:2], "labels": torch.tensor([1, 0])}, names)
    assert hard["class_mean"].tolist() == [[3, 5], [1, 2]]
    soft = teacher.signals({"x": Pairs.x[:1], "labels": torch.tensor([[0.25, 0.75]])}, names)
    assert soft["class_mean"].tolist() == [[2.5, 4.25]]
    for labels in (torch.tensor([2]), torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[1]])):
        with pytest.raises(UsageError, match="labels"):
            teacher.signals({"x": Pairs.x[:1], "labels": labels}, names)
    with pytest.raises(UsageError, match="labels"):
        teacher.signals({"x": Pairs.x[:1]}, names)
    with pytest.raises(UsageError, match="means"):
        ClassMeans(teacher, torch.ones(3))
    assert teacher.digest() != ClassMeans(teacher.teacher, means + 1).digest()


def test_it_trains_a_student():
    task = DIGITS.task()
    model, student = DIGITS.teacher.make(1), DIGITS.student.make(1)
    teacher = ClassMeans(FrozenTeacher(model), class_means(model, task, "pool"))
    procedure = Distil(student, teacher, CrossEntropy() + NormDirection("pool"))
    history = Trainer(DIGITS.config(steps=3), seed=0, progress=False).run(procedure, task)
    assert history.steps[-1]["parts"]["NormDirection(pool)"] > 0
