"""Teacher intervention: inner signals of the student are the teacher's for a part of the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Objective
from limbeck.signals import Tap, detached, injected, match_paths
from limbeck.training.procedures import Distil, Losses, State, describe


@dataclass(frozen=True)
class Intervention:
    """One phase: which signals of the student are overwritten by the teacher's.

    until     the share of all steps at which the phase ends, above 0, at most 1
    signals   module paths ("PATH", a module's output) or "PATH:input" (its first input), with * allowed, of modules that both models have;
              or pairs (student's, teacher's)
    detached  patterns of student modules through whose inputs no gradient flows back, so that losses inside them stay local
    """

    until: float
    signals: tuple[str | tuple[str, str], ...]
    detached: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.until, bool) or not isinstance(self.until, (int, float)) or not 0 < self.until <= 1:
            raise UsageError(f"Intervention: until={self.until!r} must be a share of the steps above 0, at most 1")
        for name in ("signals", "detached"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, str) else value
            entries = tuple(entry if isinstance(entry, str) else tuple(entry) for entry in value)
            object.__setattr__(self, name, entries)
        if not self.signals:
            raise UsageError("Intervention: signals is empty: name at least one signal of the teacher's")
        for entry in self.signals:
            pair = (entry,) if isinstance(entry, str) else entry
            if len(pair) not in (1, 2) or any(name.partition(":")[2] not in ("", "input") for name in pair):
                raise UsageError(f"Intervention: signal {entry!r} must be 'PATH', 'PATH:input' or a pair of such")

    def pairs(self, student: nn.Module) -> dict[str, str]:
        """The student's signals and the teacher's that take their places, patterns resolved."""
        return dict(self._found(student))

    def _found(self, student: nn.Module) -> Iterator[tuple[str, str]]:
        for entry in self.signals:
            if not isinstance(entry, str):
                yield entry
                continue
            pattern, colon, side = entry.partition(":")
            yield from ((path + colon + side, path + colon + side) for path in match_paths(student, pattern))


def gradual_intervention(attention: str = "blocks.*.attention", share: float = 1.0) -> tuple[Intervention, ...]:
    """The phases of gradual teacher intervention over the first `share` of all steps, for transformers of `limbeck.models`.

    until share / 6     the output of the self-attention is the teacher's: feed-forward layers recover
    until share / 3     its context (maps times values): output projections recover, too
    until share         its maps: value projections recover, too; queries and keys learn from the loss on scores all the while

    attention: pattern of the attention modules, which hold query, key, value, weights and output. Queries and keys, and values in the first
    two phases, do not pass gradients back. Source: Kim et al., "Teacher Intervention", EACL 2023; the phases as the authors' code has them.
    """
    if not 0 < share <= 1:
        raise UsageError(f"gradual_intervention: share={share!r} must lie above 0, at most at 1")
    inputs = tuple(f"{attention}.{name}" for name in ("query", "key", "value"))
    return (
        Intervention(share / 6, (f"{attention}.output",), inputs),
        Intervention(share / 3, (f"{attention}.output:input",), inputs),
        Intervention(share, (f"{attention}.weights",), inputs[:2]),
    )


class TeacherIntervention(Distil):
    """Distillation in whose first steps the student computes with some of the teacher's inner signals in place of its own.

        x_(l+1) = student's layers(..., h_t in place of h_s, ...),   loss on the student's signals, which behind h_t follow from it

    Quantization errors of lower layers then do not reach the layers above, and each part of a layer learns from clean inputs. An overwritten
    signal passes no gradient. The objective sees the student's own value of an overwritten signal, so that a loss on it teaches the part that
    computes it. The teacher's signals are read in evaluation mode and are needed in training alone.

    phases: in order, see `Intervention`; after the last one the step is that of `Distil`. Everything else as in `Distil`.
    Source: Kim et al., "Teacher Intervention: Improving Convergence of Quantization Aware Training for Ultra-Low Precision Transformers",
    EACL 2023, section 4. The authors' public code was read; it is made for BERT, and returns maps and scores as the student computes them, too.
    Raises UsageError for phases that are none or do not rise, no teacher, and, in the step, for signals of two shapes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        objective: Objective,
        phases: Sequence[Intervention],
        balance: Any = None,
    ):
        super().__init__(student, teacher, objective, balance)
        self.phases = tuple(phases)
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(set(ends)):
            raise UsageError(f"TeacherIntervention: phases must end one after the other; they end at {ends}")
        if self.teacher is None:
            raise UsageError("TeacherIntervention: there is no teacher to take signals from")
        self._pairs = {phase: phase.pairs(student) for phase in self.phases}

    def phase(self, state: State) -> Intervention | None:
        """The phase of this step; None after the last."""
        return next((phase for phase in self.phases if state.step < phase.until * state.steps), None)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        phase = self.phase(state)
        if phase is None:
            return super().step(batch, state)
        pairs = self._pairs[phase]
        with torch.no_grad():
            teacher = self.teacher.signals(batch, self.objective.reads.teacher | frozenset(pairs.values()))
        values = {own: teacher[other] for own, other in pairs.items()}
        with (
            Tap(self.student, self.objective.reads.student) as tap,
            injected(self.student, values),
            detached(self.student, phase.detached),
        ):
            student = tap(batch)
        losses = self.objective.losses(student, teacher, batch, self.connectors)
        return {"main": self.combine(losses, state)}

    def describe(self) -> Any:
        return super().describe() | {"phases": describe(self.phases)}
