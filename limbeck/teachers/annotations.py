"""Answers that somebody wrote down for every training example: an annotator of which no model needs to be at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError, did_you_mean
from limbeck.files import digest
from limbeck.objectives.checks import example_index
from limbeck.objectives.mapping import merged
from limbeck.objectives.positions import precise
from limbeck.signals import Signals
from limbeck.teachers.base import Teacher


def membership_logits(logits: Tensor, sets: Sequence[Sequence[int]]) -> Tensor:
    """Answers to "is it one of these classes?": log p / (1 - p), p the probability of the set.

    a_k = log sum_{c in set_k} exp z_c - log sum_{c not in set_k} exp z_c

    So a classifier answers yes-or-no questions about what its classes have in common. Shapes: logits (..., C) -> (..., Q), float32.
    Raises UsageError for a set that is empty, holds all classes, or names one twice or one that is not there.
    """
    classes = logits.shape[-1]
    chosen = [tuple(entry) for entry in sets]
    for entry in chosen:
        inside = len(set(entry)) == len(entry) and all(0 <= c < classes for c in entry)
        if not inside or not 0 < len(entry) < classes:
            raise UsageError(
                f"membership_logits: {entry!r} must name some, not all, of the classes 0 to {classes - 1}, each once"
            )
    others = [tuple(c for c in range(classes) if c not in entry) for entry in chosen]
    z = precise(logits)
    return merged(z, tuple(chosen)) - merged(z, tuple(others))


class Annotations:
    """A teacher whose answers are tables, one row for each training example, that an annotator filled in once.

    tables: signal name to tensor (examples, ...): {"aspects": (N, Q)} of logits for `BinaryTargets`, or "logits" (N, C). The row is that of
    batch["index"], whatever view of the example training shows: the annotator saw it once, as it was, and may be a large model behind an
    interface, several people, or another task's network (`membership_logits`). teacher: answers every other signal; None: there is none.

    Raises UsageError for tables of different lengths or with what is not finite, for a signal that neither has, and for examples beyond
    the tables. Mixed inputs (mixup, cutmix) have no row: leave mixing off.
    """

    def __init__(self, tables: Mapping[str, Tensor], teacher: Teacher | None = None):
        self.tables = {name: table.detach().clone() for name, table in tables.items()}
        sizes = {len(table) for table in self.tables.values() if table.dim() > 1}
        if not self.tables or len(sizes) != 1 or any(table.dim() < 2 for table in self.tables.values()):
            shapes = {name: tuple(table.shape) for name, table in self.tables.items()}
            raise UsageError(
                f"Annotations: tables of the shapes {shapes} must all be (examples, ...) of as many examples"
            )
        for name, table in self.tables.items():
            if not bool(table.isfinite().all()):
                raise UsageError(f"Annotations: the table {name!r} has entries that are not finite")
        self.examples, self.teacher = sizes.pop(), teacher

    @property
    def changes(self) -> bool:
        return self.teacher is not None and self.teacher.changes

    @torch.no_grad()
    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        rest = frozenset(names) - self.tables.keys()
        if rest and self.teacher is None:
            raise UsageError(f"Annotations: nobody answers {min(rest)!r}. {did_you_mean(min(rest), self.tables)}")
        found = dict(self.teacher.signals(batch, rest)) if rest else {}
        if rest != names:
            index = example_index("Annotations", batch, self.examples)
            found |= {name: self.tables[name][index] for name in names - rest}
        return Signals(found)

    def modules(self) -> dict[str, nn.Module]:
        return self.teacher.modules() if self.teacher is not None else {}

    def to(self, device: Any) -> None:
        self.tables = {name: table.to(device) for name, table in self.tables.items()}
        if self.teacher is not None:
            self.teacher.to(device)

    def start(self, student: nn.Module) -> None:
        if self.teacher is not None:
            self.teacher.start(student)

    def after_step(self, student: nn.Module, step: int) -> None:
        if self.teacher is not None:
            self.teacher.after_step(student, step)

    def observe(self, batch: Mapping[str, Any], student: Signals) -> None:
        if hasattr(self.teacher, "observe"):
            self.teacher.observe(batch, student)

    def digest(self) -> str:
        tables = {
            name: hashlib.sha256(table.cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
            for name, table in self.tables.items()
        }
        return digest({"kind": "annotations", "tables": tables, "teacher": self.teacher and self.teacher.digest()})
