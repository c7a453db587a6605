"""Objectives made of another objective on logits: applied to another output, at every place, under a class prior, where one is right, for a while.

OnSignal("heads.0", PriorAdjusted(WhereCorrect(SoftTargets(1.0)), counts, strength=2.5))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_labels, require_signal
from limbeck.signals import LOGITS, Reads, Signals, place_logits


def require_logits_objective(owner: Objective, objective: Objective) -> None:
    """Refuse what is no objective, or one that reads anything but the logits of both sides."""
    wanted = frozenset({LOGITS})
    if not isinstance(objective, Objective) or objective.reads.student != wanted or objective.reads.teacher - wanted:
        raise UsageError(
            f"{type(owner).__name__}: objective={objective!r} must be an objective that reads logits alone, such as SoftTargets()"
        )


class Adapter(Objective):
    """What they share: the field `objective`, which reads logits alone and has no connectors."""

    def __post_init__(self) -> None:
        require_logits_objective(self, self.objective)

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.objective.name})"

    @property
    def reads(self) -> Reads:
        return self.objective.reads

    def inner(self, student: Tensor, teacher: Signals, batch: Batch) -> Tensor:
        """The inner objective's value on these logits."""
        return self.objective(Signals({LOGITS: student}), teacher, batch).value


@dataclass(frozen=True)
class OnSignal(Adapter):
    """An objective on logits, applied to another output of the student (a second head, an expert, an exit) and of the teacher.

    L = objective(student[student], teacher[teacher], batch)

    student, teacher: signals that have the shape of logits; of an `EnsembleTeacher`, "1.logits" is what its second member says.
    Where the output is a feature that needs a classifier first, use `AtExit`.
    """

    student: str
    objective: Objective
    teacher: str = LOGITS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_signal(self, "student", self.student)
        require_signal(self, "teacher", self.teacher)

    @property
    def name(self) -> str:
        return f"{self.objective.name}({self.student})"

    @property
    def reads(self) -> Reads:
        teacher = frozenset({self.teacher}) if self.objective.reads.teacher else frozenset()
        return Reads(frozenset({self.student}), teacher)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        known = Signals({LOGITS: teacher[self.teacher]} if self.objective.reads.teacher else {})
        return self.inner(student[self.student], known, batch)


@dataclass(frozen=True)
class AtPlaces(Adapter):
    """An objective on logits, at every place of a map: for segmentation and other dense predictions.

    L = objective(z_s, z_t, batch),   z (B, classes, h, w) as positions (B, H, W) with the classes last

    Logits of another size than the labels (B, H, W) are resized to it (bilinear); without labels, the student's to the teacher's. Places
    labelled -100 do not count, as tokens do not. AtPlaces(CrossEntropy() + SoftTargets(2.0)) is a sum like any other.
    """

    objective: Objective

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        labels, known = batch.get("labels"), {name: teacher[name] for name in self.objective.reads.teacher}
        like = labels if isinstance(labels, Tensor) and labels.dim() == 3 else None
        like = next(iter(known.values()), student.logits)[:, 0] if like is None else like
        known = Signals({name: place_logits(logits, like.shape[1:]) for name, logits in known.items()})
        return self.inner(place_logits(student.logits, like.shape[1:]), known, batch)


@dataclass(frozen=True)
class PriorAdjusted(Adapter):
    """An objective on logits that are shifted by the logarithm of the class frequencies.

    L = objective(z_s + strength log n, z_t + strength log n)

    With cross-entropy it is logit adjustment: strength 1 makes z itself the answer for classes that are equally frequent,
    more favours rare classes, less than 0 favours frequent ones. A teacher's logits are shifted alike.

    counts: training examples of each class (C,), each at least 1. Shapes: logits (..., C).
    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10 (strength is tau); with strengths -0.5, 1 and
    2.5 for three experts, Zhao et al., "MDCS", ICCV 2023, section 3.2, whose authors' code has the same formula.
    """

    objective: Objective
    counts: tuple[float, ...]
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "counts", tuple(self.counts))
        if len(self.counts) < 2 or not all(math.isfinite(count) and count >= 1 for count in self.counts):
            raise UsageError(
                f"PriorAdjusted: counts={self.counts!r} must be the number of examples of two or more classes, 1 or more each"
            )
        if isinstance(self.strength, bool) or not math.isfinite(self.strength):
            raise UsageError(f"PriorAdjusted: strength={self.strength!r} must be a finite number")

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        known = {name: self._shifted(teacher[name]) for name in self.objective.reads.teacher}
        return self.inner(self._shifted(student.logits), Signals(known), batch)

    def _shifted(self, logits: Tensor) -> Tensor:
        if logits.shape[-1] != len(self.counts):
            raise UsageError(f"PriorAdjusted: counts of {len(self.counts)} classes, logits of {logits.shape[-1]}")
        logits = positions.precise(logits)
        return logits + self.strength * logits.new_tensor(self.counts).log()


@dataclass(frozen=True)
class WhereCorrect(Adapter):
    """An objective on logits, over the positions only where one side's most likely class is the true one.

    L = mean over {n: argmax_c z_n,c = y_n} of objective_n,   z: the teacher's logits, or the student's; 0 where there is none

    So a teacher that errs teaches nothing there. Labels are whole numbers; the objective must leave out positions labelled -100.
    Shapes: logits (..., C), labels (...).
    Source: Zhao et al., "MDCS: More Diverse Experts with Consistency Self-distillation for Long-tailed Recognition", ICCV 2023,
    section 3.3 (confident instance sampling); the authors' code has the same mask.
    """

    objective: Objective
    side: str = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, "side", self.side, ("teacher", "student"))
        if getattr(self.objective, "positions", "labelled") != "labelled":
            raise UsageError(
                "WhereCorrect: its objective counts unlabelled positions too: give it positions='labelled'"
            )

    @property
    def reads(self) -> Reads:
        return self.objective.reads | Reads(teacher=frozenset({LOGITS} if self.side == "teacher" else ()))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        judged = (teacher if self.side == "teacher" else student).logits.detach()
        labels = require_labels(self, batch, judged)
        if labels.is_floating_point():
            raise UsageError("WhereCorrect: labels that are probabilities name no true class")
        right = judged.argmax(-1) == labels
        kept = torch.where(right, batch["labels"], torch.full_like(batch["labels"], positions.IGNORED))
        return self.inner(student.logits, teacher, {**batch, "labels": kept})


@dataclass(frozen=True)
class Scheduled(Objective):
    """An objective that counts for some epochs only, and may grow in.

    L = f(epoch) objective,   f = min(1, (epoch - begin) / ramp) from `begin` up to, not including, `end`; else 0

    begin, end: epochs, end None: to the last. ramp: epochs over which it grows from 0; 0: at once. Needs batch["epoch"], as the
    Trainer gives it, unless it counts always.
    """

    objective: Objective
    begin: float = 0
    end: float | None = None
    ramp: float = 0

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise UsageError(f"Scheduled: objective={self.objective!r} must be an objective")
        for name in ("begin", "ramp"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (math.isfinite(value) and value >= 0):
                raise UsageError(f"Scheduled: {name}={value!r} must be a finite number of epochs, 0 or more")
        if self.end is not None and not self.end > self.begin:
            raise UsageError(f"Scheduled: end={self.end!r} must be later than begin={self.begin!r}, or None")

    @property
    def name(self) -> str:
        return f"Scheduled({self.objective.name})"

    @property
    def reads(self) -> Reads:
        return self.objective.reads

    def connectors(self, student: Signals, teacher: Signals):
        return self.objective.connectors(student, teacher)

    def factor(self, batch: Batch) -> float:
        """The objective's weight for this batch, between 0 and 1."""
        if not self.begin and not self.ramp and self.end is None:
            return 1.0
        if batch.get("epoch") is None:
            raise UsageError(f"Scheduled needs batch['epoch']; the batch has {sorted(batch)}")
        past = int(batch["epoch"]) - self.begin
        if past < 0 or (self.end is not None and int(batch["epoch"]) >= self.end):
            return 0.0
        return min(1.0, past / self.ramp) if self.ramp else 1.0

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        factor = self.factor(batch)
        if not factor:
            return sum(positions.precise(student[name]).sum() * 0 for name in sorted(self.reads.student))
        return factor * self.objective(student, teacher, batch, connectors).value
