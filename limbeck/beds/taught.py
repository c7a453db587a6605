"""Beds of one task with a student and a teacher: what training a student with an objective is on each of them."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.beds.base import Bed
from limbeck.experiments.run import Run
from limbeck.objectives import Objective
from limbeck.training import Distil, Procedure


class TaughtBed(Bed):
    """A bed with `task()`, `config(**changes)`, `new_student(run)`, `trained_teacher(run)` and `measure(run, model)`."""

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
