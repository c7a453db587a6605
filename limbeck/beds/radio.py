"""Radio signals: six modulations at 0 to 18 dB, synthesized; a convolutional transformer teaches a small convolutional net."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck.beds.base import Bed
from limbeck.datasets.radio import MODULATIONS, modulated
from limbeck.files import digest
from limbeck.measure.latency import evaluating
from limbeck.models import signal_cnn, signal_transformer
from limbeck.objectives import CrossEntropy, Objective
from limbeck.signals import call, first_tensor
from limbeck.tasks.base import generator
from limbeck.tasks.custom import CustomTask
from limbeck.training import Distil, TrainingConfig

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


@functools.lru_cache(maxsize=2)
def _task(length: int, counts: tuple[tuple[str, int], ...]) -> CustomTask:
    data = {}
    for split, count in counts:
        signals, labels = [], []
        for label, kind in enumerate(MODULATIONS):
            draws = generator("radio", split, kind)
            snr = 18 * torch.rand(count, generator=draws)
            signals.append(modulated(kind, count, length, snr, draws))
            labels.append(torch.full((count,), label))
        data[split] = (torch.cat(signals), torch.cat(labels))
    return CustomTask(data, inputs=("signal",), classes=MODULATIONS, name="modulations")


@dataclass(frozen=True)
class RadioBed(Bed):
    """train, held, test: signals of each modulation; `length` samples each. `bed.distil(run, objective, limit=...)` trains the student;
    `bed.trained_teacher(run)` gives the teacher, trained on all labels."""

    name: str = "modulations"
    length: int = 128
    train: int = 1000
    held: int = 200
    test: int = 400
    steps: int = 400
    teacher_steps: int = 600
    expects: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"accuracy": (0.6, 0.97), "teacher_accuracy": (0.75, 1.0)}, compare=False
    )

    def task(self) -> CustomTask:
        return _task(self.length, (("train", self.train), ("validation", self.held), ("test", self.test)))

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings(), "version": 1})

    def config(self, **changes: Any) -> TrainingConfig:
        settings = {"steps": self.steps, "batch_size": 64, "learning_rate": 3e-3, "weight_decay": 0.01, "warmup": 0.1}
        return TrainingConfig(**(settings | changes))

    def student(self, run: Run) -> nn.Module:
        return run.fresh(signal_cnn)

    def trained_teacher(self, run: Run) -> nn.Module:
        """The convolutional transformer, trained once."""
        config = self.config(steps=self.teacher_steps, learning_rate=2e-3, gradient_clipping=1.0)
        key = {"kind": "radio teacher", "version": 1, "data": self.task().digest(), "training": config.to_json()}

        def train(model: nn.Module) -> None:
            run.train(Distil(model, None, CrossEntropy()), self.task(), config, seed=0, counted=False)

        return run.trained(key, signal_transformer, train)

    def distil(self, run: Run, objective: Objective, **changes: Any) -> dict[str, float]:
        """Train a fresh student and measure it; the teacher is there where the objective reads one. changes: of the schedule, such as
        `limit`, how many train signals it sees."""
        teacher, student = self.trained_teacher(run) if objective.reads.teacher else None, self.student(run)
        run.train(Distil(student, teacher, objective), self.task(), self.config(**changes))
        run.record(parameters=sum(parameter.numel() for parameter in student.parameters()))
        return self.measure(run, student)

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """`accuracy` over all noise levels and `loss` on the run's split."""
        with evaluating(model):
            return self.task().evaluate(lambda batch: first_tensor(call(model, batch)), run.split)

    def reference(self, run: Run) -> dict[str, float]:
        teacher = self.measure(run, self.trained_teacher(run))["accuracy"]
        return self.distil(run, CrossEntropy()) | {"teacher_accuracy": teacher}


MODULATED = RadioBed()
