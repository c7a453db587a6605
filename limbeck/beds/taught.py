"""Beds of one task with a student and a teacher: what training a student with an objective is on each of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from limbeck.beds.base import Bed
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.objectives import Objective
from limbeck.training import Distil, Procedure, TrainingConfig


class TaughtBed(Bed):
    """A bed with `task()`, `new_student(run)`, `trained_teacher(run)` and `measure(run, model)`.

    It is a dataclass with the fields dataset, training and teacher_training, the schedules of both.
    """

    dataset: str
    training: TrainingConfig
    teacher_training: TrainingConfig

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings()})

    def describe(self) -> dict[str, Any]:
        task = self.task()
        sizes = {split: task.size(split) for split in task.splits()}
        return super().describe() | {"data": self.dataset, "examples": sizes, "settings": self.settings()}

    def settings(self) -> dict[str, Any]:
        schedules = {"training": self.training.to_json(), "teacher_training": self.teacher_training.to_json()}
        return super().settings() | schedules

    def config(self, **changes: Any) -> TrainingConfig:
        """The student's schedule, with changes; steps take the place of epochs, and the other way round."""
        for given, other in (("steps", "epochs"), ("epochs", "steps")):
            if changes.get(given) is not None:
                changes.setdefault(other, None)
        return replace(self.training, **changes)

    def usual_teacher(self, run: Run) -> Any:
        """Who teaches where an arm names nobody."""
        return self.trained_teacher(run)

    def distil(
        self, run: Run, objective: Objective, teacher: Any = None, student: nn.Module | None = None, **changes: Any
    ) -> dict[str, float]:
        """Train a student to minimize the objective and measure it on the run's split.

        teacher: a model or a teacher; None takes the bed's where the objective reads one. student: None makes the bed's.
        changes: of the schedule.
        """
        if teacher is None and objective.reads.teacher:
            teacher = self.usual_teacher(run)
        student = student if student is not None else self.new_student(run)
        return self.fit(run, Distil(student, teacher, objective), **changes)

    def fit(self, run: Run, procedure: Procedure, **changes: Any) -> dict[str, float]:
        """Run a procedure on the bed's schedule and measure its model."""
        run.train(procedure, self.task(), self.config(**changes))
        model = procedure.model()
        run.record(parameters=sum(parameter.numel() for parameter in model.parameters()))
        return self.measure(run, model)
