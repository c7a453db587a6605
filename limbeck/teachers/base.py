"""Teacher: where training signals come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn

from limbeck.signals import Signals


class Teacher(Protocol):
    """Yields Signals for a batch, without gradient, and computes only the names that were asked for."""

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals: ...

    def modules(self) -> dict[str, nn.Module]:
        """Modules whose state must be in a checkpoint (an EMA has one; a frozen teacher, which never changes, none)."""
        ...

    def to(self, device: Any) -> None:
        """Move to a device."""
        ...

    def after_step(self, student: nn.Module, step: int) -> None:
        """Called after every optimizer step; an EMA or snapshot teacher follows the student here."""
        ...
