"""Semantic segmentation: a U-Net teaches a tiny one on street scenes (CamVid) made small."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from limbeck.beds.taught import TaughtBed
from limbeck.experiments.run import Run
from limbeck.measure.latency import evaluating
from limbeck.models import unet
from limbeck.objectives import AtPlaces, CrossEntropy
from limbeck.signals import call, first_tensor
from limbeck.tasks import SemanticSegmentation
from limbeck.teachers import FrozenTeacher
from limbeck.training import Distil, TrainingConfig


@dataclass(frozen=True)
class Network:
    """A U-Net: the widths of its levels, convolutions of a level, the stride of the first one."""

    widths: tuple[int, ...]
    layers: int = 1
    stride: int = 2

    def make(self, classes: int) -> nn.Module:
        return unet(self.widths, classes, 3, self.layers, self.stride)


@dataclass(frozen=True, kw_only=True)
class SegmentationBed(TaughtBed):
    """Images with masks, a student and a teacher.

    dataset, size, crop: see `SemanticSegmentation`. train, validation, test: how many images of each split, evenly spaced over it;
    None: all. student, teacher: `Network`. training, teacher_training: `TrainingConfig`.

        bed.distil(run, AtPlaces(CrossEntropy()) + Hint("head"))    train a student with an objective and measure it
        bed.fit(run, procedure), bed.new_student(run), bed.trained_teacher(run), bed.measure(run, model)
    """

    dataset: str
    name: str
    size: tuple[int, int]
    student: Network
    teacher: Network
    training: TrainingConfig
    teacher_training: TrainingConfig
    crop: int = 0
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    expects: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def task(self) -> SemanticSegmentation:
        """The data, loaded once per process."""
        counts = {"train": self.train, "validation": self.validation, "test": self.test}
        return _task(self.dataset, self.size, self.crop, tuple((s, n) for s, n in counts.items() if n))

    def new_student(self, run: Run) -> nn.Module:
        """A fresh student whose weights depend on the run's seed only."""
        return run.fresh(lambda: self.student.make(len(self.task().classes)))

    def trained_teacher(self, run: Run) -> nn.Module:
        """The teacher, trained once on the labels of the same images, and shared by everyone."""
        task = self.task()
        key = {"kind": "segmentation teacher", "version": 1, "data": [task.digest(), task.augmentation]}
        key |= {"architecture": asdict(self.teacher), "training": self.teacher_training.to_json()}

        def fit(model: nn.Module) -> None:
            procedure = Distil(model, None, AtPlaces(CrossEntropy()))
            run.train(procedure, task, self.teacher_training, seed=0, counted=False)

        made = run.trained(key, lambda: self.teacher.make(len(task.classes)), fit)
        return made.to(memory_format=torch.channels_last)

    def usual_teacher(self, run: Run) -> FrozenTeacher:
        """The trained teacher, in the precision it was trained in."""
        return FrozenTeacher(self.trained_teacher(run), self.teacher_training.precision)

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """`mean_iou`, `accuracy`, `class_accuracy` and `loss` on the run's split."""
        with evaluating(model):
            return self.task().evaluate(lambda batch: first_tensor(call(model, batch)), split=run.split)

    def reference(self, run: Run) -> dict[str, float]:
        """The student trained with labels alone; `teacher_mean_iou` is the teacher's."""
        teacher = self.measure(run, self.trained_teacher(run))["mean_iou"]
        return self.distil(run, AtPlaces(CrossEntropy())) | {"teacher_mean_iou": teacher}


@functools.lru_cache(maxsize=2)
def _task(dataset: str, size: tuple[int, int], crop: int, counts: tuple) -> SemanticSegmentation:
    return SemanticSegmentation(dataset, size=size, crop=crop, examples=dict(counts))


def _schedule(steps: int, learning_rate: float, precision: str = "fp32") -> TrainingConfig:
    return TrainingConfig(
        steps=steps,
        batch_size=8,
        learning_rate=learning_rate,
        weight_decay=0.01,
        schedule="cosine",
        warmup=0.1,
        precision=precision,
        channels_last=True,
    )


CAMVID = SegmentationBed(
    dataset="camvid",
    name="camvid 64x48",
    size=(48, 64),
    crop=4,
    student=Network((16, 32, 64), stride=4),
    teacher=Network((24, 48, 96, 128)),
    training=_schedule(300, 1e-2),
    teacher_training=_schedule(1500, 3e-3, "bf16"),
    expects={"mean_iou": (0.23, 0.32), "teacher_mean_iou": (0.29, 0.4)},
)
