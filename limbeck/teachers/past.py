"""Teachers that are the student's own past: what it predicted for each example, or what it was an epoch ago."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.objectives.checks import example_index
from limbeck.objectives.divergences import log_probabilities
from limbeck.signals import LOGITS, Signals
from limbeck.teachers.frozen import FrozenTeacher

NEVER = -1e4  # the logit of a class that a label rules out: its probability is 0 also in float32


class PastPredictions:
    """For each training example what the student predicted when it last saw it: a table that training writes by itself.

    logits = log softmax of the student at its last visit of the example; before the first, the label (a one-hot)

    It costs no forward pass: the prediction of a step is written down after the answer was read. It belongs to the view of that
    visit and to the student in training mode. The table is part of a checkpoint, so a resumed run answers alike.

    examples: the size of the train split, which `index` counts in. Needs batches with `index` and, for examples not seen
    before, `labels`. Shapes: logits (B, classes); the table takes examples x classes x 4 bytes.
    Source: Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV 2021, section 3; the table is
    how the authors' code has it.
    """

    changes = True

    def __init__(self, examples: int, classes: int):
        for name, value, least in (("examples", examples, 1), ("classes", classes, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"PastPredictions: {name}={value!r} must be a whole number of at least {least}")
        self.table = nn.Module()
        self.table.register_buffer("logits", torch.zeros(examples, classes))
        self.table.register_buffer("seen", torch.zeros(examples, dtype=torch.bool))

    @torch.no_grad()
    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        """The table's rows. Raises UsageError for another signal than the logits, or a batch without what it needs."""
        if names - {LOGITS}:
            raise UsageError(f"PastPredictions remembers logits only, and {sorted(names - {LOGITS})} was asked for")
        if not names:
            return Signals({})
        index = example_index("PastPredictions", batch, len(self.table.seen))
        found, seen = self.table.logits[index], self.table.seen[index]
        if not bool(seen.all()):
            found = torch.where(seen[:, None], found, self._labels(batch, found))
        return Signals({LOGITS: found})

    @torch.no_grad()
    def observe(self, batch: Mapping[str, Any], student: Signals) -> None:
        """Write down what the student predicts in this step."""
        index = example_index("PastPredictions", batch, len(self.table.seen))
        self.table.logits[index] = log_probabilities(student.logits).to(self.table.logits.dtype)
        self.table.seen[index] = True

    def _labels(self, batch: Mapping[str, Any], like: Tensor) -> Tensor:
        labels = batch.get("labels")
        if labels is None or labels.dim() != (2 if labels.is_floating_point() else 1):
            raise UsageError(
                "PastPredictions needs batch['labels'] of shape (batch,) for examples that it has not seen"
            )
        if labels.is_floating_point():
            return labels.to(like.dtype).log().clamp_min(NEVER)
        return torch.full_like(like, NEVER).scatter_(1, labels[:, None], 0.0)

    def modules(self) -> dict[str, nn.Module]:
        return {"table": self.table}

    def start(self, student: nn.Module) -> None:
        """Refuse several processes: each would write only its own part of the table."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            count = torch.distributed.get_world_size()
            if count > 1:
                raise UsageError(
                    f"PastPredictions keeps one table, and {count} processes train: use one, or EpochSnapshot"
                )

    def after_step(self, student: nn.Module, step: int) -> None:
        pass

    def to(self, device: Any) -> None:
        self.table.to(device)

    def digest(self) -> str:
        return digest({"kind": "past predictions", "shape": list(self.table.logits.shape)})


class EpochSnapshot:
    """The student as it was when the current epoch began, in evaluation mode; in the first epoch, as it was initialized.

    Answers are recomputed on the batch at hand, with its augmentation: one more forward pass per step. Needs batches with
    `epoch`, as the Trainer gives them. The copy is part of a checkpoint.
    Source: the checkpoint form of Kim et al., ICCV 2021, section 3 (see `PastPredictions`).
    """

    changes = True

    def __init__(self) -> None:
        self._student: nn.Module | None = None
        self._past: FrozenTeacher | None = None
        self._clock = nn.Module()
        self._clock.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    def start(self, student: nn.Module) -> None:
        """Copy the student; a second call does nothing."""
        if self._past is None:
            self._student = student
            self._past = FrozenTeacher(copy.deepcopy(student).requires_grad_(False))

    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        if self._past is None:
            raise UsageError("EpochSnapshot has no student yet: call start(student) before the first step")
        epoch = batch.get("epoch")
        if epoch is None:
            raise UsageError(f"EpochSnapshot needs batch['epoch']; the batch has {sorted(batch)}")
        if int(epoch) != int(self._clock.epoch):
            self._past.model.load_state_dict(self._student.state_dict())
            self._clock.epoch.fill_(int(epoch))
        return self._past.signals(batch, names)

    def after_step(self, student: nn.Module, step: int) -> None:
        pass

    def modules(self) -> dict[str, nn.Module]:
        if self._past is None:
            raise UsageError("EpochSnapshot has no student yet: call start(student) before the first step")
        return {"past": self._past.model, "clock": self._clock}

    def to(self, device: Any) -> None:
        self._clock.to(device)
        if self._past is not None:
            self._past.to(device)

    def digest(self) -> str:
        return digest({"kind": "epoch snapshot"})
