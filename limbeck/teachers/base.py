"""Teacher: where training signals come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from limbeck.signals import Signals


class Teacher(Protocol):
    """Yields Signals for a batch, without gradient, and computes only the names that were asked for.

    A teacher may also have `observe(batch, student)`: called in every step, after its answer was read, with the student's
    own signals of that step, detached (past predictions are written down there).
    """

    changes: bool  # whether its answers change while it teaches

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals: ...

    def modules(self) -> dict[str, nn.Module]:
        """Modules whose state must be in a checkpoint (an EMA has one; a frozen teacher, which never changes, none)."""
        ...

    def to(self, device: Any) -> None:
        """Move to a device."""
        ...

    def start(self, student: nn.Module) -> None:
        """Called once before the first step, also of a resumed run and before `modules`; an EMA copies the student here."""
        ...

    def after_step(self, student: nn.Module, step: int) -> None:
        """Called after every optimizer step with the number of steps done, from 1; an EMA follows the student here."""
        ...

    def digest(self) -> str:
        """Tells it from other teachers: by its answers, or by its settings when it changes."""
        ...


class Unchanging:
    """A teacher that neither looks at the student nor has state of its own to save."""

    changes = False

    def modules(self) -> dict[str, nn.Module]:
        return {}

    def start(self, student: nn.Module) -> None:
        pass

    def after_step(self, student: nn.Module, step: int) -> None:
        pass


class Around:
    """A teacher made of another one, `self.teacher`: everything but its answers and its digest is the other's."""

    teacher: Teacher

    @property
    def changes(self) -> bool:
        return self.teacher.changes

    def modules(self) -> dict[str, nn.Module]:
        return self.teacher.modules()

    def to(self, device: Any) -> None:
        self.teacher.to(device)

    def start(self, student: nn.Module) -> None:
        self.teacher.start(student)

    def after_step(self, student: nn.Module, step: int) -> None:
        self.teacher.after_step(student, step)
