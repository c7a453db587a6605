"""Base of objectives that read one signal of the student and one of the teacher."""

from __future__ import annotations

from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import connectors as connect
from limbeck.objectives.base import Batch, Objective
from limbeck.objectives.checks import require_signal
from limbeck.signals import Reads, Signals


class LayerPair(Objective):
    """A layer of each model; a subclass is a frozen dataclass with the fields `student` and `teacher` (None: the same path).

    resizing: how maps of two sizes are matched, see `limbeck.objectives.connectors.match`.
    """

    resizing = "pool"

    def __post_init__(self) -> None:
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher or self.student)

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.student})"

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({self.student}), teacher=frozenset({self.teacher or self.student}))

    def pair(self, student: Signals, teacher: Signals) -> tuple[Tensor, Tensor]:
        """The student's signal, and the teacher's without gradient."""
        return student[self.student], teacher[self.teacher or self.student].detach()

    def matched(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both in one layout and size; what does not fit is said with the objective's name."""
        try:
            return connect.match(*self.pair(student, teacher), batch, self.resizing)
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from error
