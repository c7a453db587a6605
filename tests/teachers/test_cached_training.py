"""Training from a cache is training with the teacher itself: the Trainer, a real task with augmentation, the same weights."""

import copy

import torch
from torch import nn

from limbeck.objectives import CrossEntropy, Hint, SoftTargets
from limbeck.tasks import ImageClassification
from limbeck.teachers import CachedTeacher, FrozenTeacher, build_cache
from limbeck.training import Distil, Trainer, TrainingConfig


def network(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, 10))


def test_the_cache_gives_the_same_student_as_the_teacher(tmp_path):
    task = ImageClassification("digits")
    example = task.example(2)["pixel_values"]
    teacher_model, start = network(32, 0), network(12, 1)
    teacher_model(example), start(example)
    config = TrainingConfig(epochs=3, batch_size=50, limit=230, label_smoothing=0.1, gradient_accumulation=2)
    objective = SoftTargets(2.0) + CrossEntropy() + Hint("2")
    frozen = FrozenTeacher(teacher_model)
    cached = build_cache(
        frozen,
        task,
        tmp_path / "cache",
        passes=3,
        seed=5,
        batch_size=50,
        limit=230,
        dtype="float32",
        names=["2"],
        progress=False,
    )
    assert isinstance(cached, CachedTeacher)
    assert task.augmentation != "none"
    assert cached.passes == 3
    weights = []
    for teacher in (frozen, cached):
        student = copy.deepcopy(start)
        Trainer(config, seed=5, progress=False).run(Distil(student, teacher, objective), task)
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-7)
    assert not torch.equal(weights[0], torch.cat([p.detach().flatten() for p in start.parameters()]))
