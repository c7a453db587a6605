"""Objectives on a part of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Batch, Connectors, Loss, Objective
from limbeck.objectives.checks import require_signal
from limbeck.signals import Reads, Signals


@dataclass(frozen=True)
class AtTokens(Objective):
    """An objective on sequences whose student has only some of the teacher's tokens.

    The teacher's sequences (B, L, D), and `attention_mask` (B, L), are cut to the tokens that the student's signal `kept` names:
    positions in the full sequence, (B, tokens) or (tokens,) of whole numbers, as `limbeck.inference.ThinnedTokens` yields them. The
    student's signals are taken as they are; signals of other layouts (logits, maps) pass unchanged.
    Raises UsageError for positions that the teacher does not have.
    """

    objective: Objective
    kept: str

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise UsageError(f"AtTokens: objective={self.objective!r} must be an objective, such as Hint('blocks.2')")
        require_signal(self, "kept", self.kept)

    @property
    def name(self) -> str:
        return f"AtTokens({self.objective.name})"

    @property
    def reads(self) -> Reads:
        return self.objective.reads | Reads(student=frozenset({self.kept}))

    def connectors(self, student: Signals, teacher: Signals) -> dict[str, nn.Module]:
        return self.objective.connectors(student, self._cut(teacher, student[self.kept]))

    def __call__(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors | None = None) -> Loss:
        index = student[self.kept]
        mask = batch.get("attention_mask")
        if mask is not None:
            batch = {**batch, "attention_mask": self._take(mask.unsqueeze(-1), index).squeeze(-1)}
        return self.objective(student, self._cut(teacher, index), batch, connectors)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        return self(student, teacher, batch, connectors).value

    def _cut(self, teacher: Signals, index: Tensor) -> Signals:
        names = self.objective.reads.teacher
        return Signals(
            {name: self._take(teacher[name], index) if teacher[name].dim() == 3 else teacher[name] for name in names}
        )

    def _take(self, sequence: Tensor, index: Tensor) -> Tensor:
        if index.is_floating_point() or index.dim() not in (1, 2) or int(index.max()) >= sequence.shape[1]:
            raise UsageError(
                f"AtTokens: {self.kept!r} must hold positions (B, tokens) below {sequence.shape[1]}, the teacher's tokens; it is "
                f"{tuple(index.shape)} of {index.dtype} with the largest {float(index.max()):g}"
            )
        index = index.expand(sequence.shape[0], -1) if index.dim() == 1 else index
        return sequence.gather(1, index.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))
