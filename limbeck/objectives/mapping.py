"""Mapped objectives: a student and a teacher whose classes or words are not the same ones.

Nothing is guessed: an objective on logits of two widths is refused, until a mapping says what corresponds to what.

    MappedClasses(SoftTargets(), classes=(3, (0, 1), None))              subset, merged and unknown classes, by number
    MappedClasses(SoftTargets(), student_names=..., teacher_names=...)   by name
    MappedTokens(SoftTargets(1.0), "student/", "teacher/")               words of two tokenizers that are the same text
    SortedTargets()                                                      no correspondence: the shapes of the distributions alone
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.objectives import divergences, positions
from limbeck.objectives.adapters import Adapter
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_choice, require_positive, require_signal
from limbeck.signals import ALIGNED, LOGITS, Reads, Signals

Classes = tuple[int | tuple[int, ...] | None, ...]


def merged(logits: Tensor, classes: Classes) -> Tensor:
    """The logits (..., S) of sets of classes, log sum exp z over each set, of logits (..., C); every entry must name some."""
    single = all(isinstance(entry, int) for entry in classes)
    if single:
        return logits[..., torch.tensor(classes, device=logits.device)]
    sets = [(entry,) if isinstance(entry, int) else entry for entry in classes]
    width = max(len(entry) for entry in sets)
    z = positions.precise(logits)
    padded = torch.cat([z, z.new_full((*z.shape[:-1], 1), -torch.inf)], dim=-1)  # an empty place adds nothing
    places = torch.tensor([[*entry, *[z.shape[-1]] * (width - len(entry))] for entry in sets], device=z.device)
    return padded[..., places].logsumexp(-1)


def same_names(student: Sequence[str], teacher: Sequence[str]) -> Classes:
    """For each of the student's names the teacher's class of that name, or None. Raises UsageError for a name that is there twice."""
    for whose, names in (("student", student), ("teacher", teacher)):
        if len(set(names)) != len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise UsageError(
                f"the {whose} has two classes called {twice!r}: name the correspondence by number, classes=(...)"
            )
    places = {name: place for place, name in enumerate(teacher)}
    return tuple(places.get(name) for name in student)


class _Mapped(Adapter):
    """What both share: `mapping()`, and the fields `student`, `teacher` and `aligned`."""

    maps_classes = True

    def mapping(self) -> Classes:
        """The teacher's class or classes of each of the student's."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return self.objective.name

    @property
    def reads(self) -> Reads:
        teacher = {self.teacher} | ({self.aligned} if self.aligned else set())
        return Reads(frozenset({self.student}), frozenset(teacher))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.objective.reads.teacher:
            raise UsageError(f"{type(self).__name__}: {self.objective.name} reads no teacher: there is nothing to map")
        for field in ("classes", "student_classes"):
            if getattr(self.objective, field, None) is not None:
                raise UsageError(f"{type(self).__name__}: {self.objective.name} has {field} of its own; leave it out")
        for field in ("student", "teacher", "aligned"):
            if field != "aligned" or self.aligned is not None:
                require_signal(self, field, getattr(self, field))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = student[self.student], teacher[self.teacher].detach()
        mapping = self.mapping()
        if own.shape[-1] != len(mapping):
            raise UsageError(
                f"{self.name}: the mapping has {len(mapping)} entries and the student {own.shape[-1]} classes"
            )
        known = [place for place, entry in enumerate(mapping) if entry is not None]
        given = tuple(mapping[place] for place in known)
        largest = max(entry if isinstance(entry, int) else max(entry) for entry in given)
        if largest >= target.shape[-1]:
            raise UsageError(f"{self.name}: the mapping names the teacher's class {largest}; it has {target.shape[-1]}")
        if own.shape[:-1] != target.shape[:-1]:
            raise UsageError(
                f"{self.name}: the student's output has the shape {tuple(own.shape)} and the teacher's {tuple(target.shape)}; their "
                "positions must be the same. Two tokenizers cut text at other places: align them with RetokenizedTeacher"
            )
        if self.aligned:
            batch = where_aligned(batch, teacher[self.aligned], own.shape[:-1])
        if len(known) < len(mapping):
            batch = {**batch, "labels": _known_labels(batch.get("labels"), known, len(mapping), own.shape)}
            own = own[..., torch.tensor(known, device=own.device)]
        return self.inner(own, Signals({LOGITS: merged(target, given)}), batch)


def where_aligned(batch: Batch, aligned: Tensor, shape: torch.Size) -> dict:
    """The batch with an attention mask that is 0 where `aligned` (B, L) is."""
    if aligned.shape != shape or len(shape) != 2:
        raise UsageError(f"aligned positions of the shape {tuple(aligned.shape)} do not fit outputs at {tuple(shape)}")
    mask = batch.get("attention_mask")
    counts = (aligned != 0) if mask is None else (aligned != 0) & (mask != 0)
    return {**batch, "attention_mask": counts.long()}


def _known_labels(labels: Tensor | None, known: Sequence[int], classes: int, shape: torch.Size) -> Tensor | None:
    """Labels as places among the known classes; a class that is unknown is ignored."""
    if labels is None:
        return None
    if labels.is_floating_point():
        return labels[..., torch.tensor(known, device=labels.device)]
    if labels.shape != shape[:-1]:
        return labels
    places = torch.full((classes,), positions.IGNORED, device=labels.device)
    places[torch.tensor(known, device=labels.device)] = torch.arange(len(known), device=labels.device)
    inside = (labels >= 0) & (labels < classes)
    return torch.where(inside, places[labels.long().clamp(0, classes - 1)], positions.IGNORED)


@dataclass(frozen=True)
class MappedClasses(_Mapped):
    """An objective on logits for a student and a teacher of different label sets.

    L = objective(z_s restricted to K, z'),   z'_i = log sum_{j in classes_i} exp z_t,j,   K: the classes with an entry

    classes: for each of the student's classes the teacher's class, several of them, whose probabilities add up (fine labels
    to coarse ones), or None for a class the teacher does not know. The teacher's classes that nobody names are left out, so what is
    compared is each side's distribution among the classes they share: a student of a subset, of a union, or of both. Examples
    labelled with a class that the teacher does not know do not count for an objective that counts labelled positions. Or give
    student_names and teacher_names, and the same name is the same class. A softening temperature is applied after the probabilities were added.

    student, teacher: signals; teachers that know different parts of the student's classes are an `EnsembleTeacher` of which a sum of
    these reads "0.logits", "1.logits" and so on. aligned: the teacher's signal that says which positions count, for sequences.
    Shapes: logits (B, S) and (B, C), or (B, L, S) and (B, L, C). Raises UsageError for fewer than two shared classes, for a class that
    is named twice, and for entries that do not fit the logits.
    """

    objective: Objective
    classes: Classes | None = None
    student_names: tuple[str, ...] | None = None
    teacher_names: tuple[str, ...] | None = None
    student: str = LOGITS
    teacher: str = LOGITS
    aligned: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = (self.student_names, self.teacher_names)
        if (self.classes is None) == (None in named) or named.count(None) == 1:
            raise UsageError(
                "MappedClasses: say how the classes correspond, either by number, classes=(...), or by name, student_names=(...) and "
                "teacher_names=(...)"
            )
        if self.classes is None:
            for field in ("student_names", "teacher_names"):
                object.__setattr__(self, field, tuple(getattr(self, field)))
        else:
            entries = [tuple(e) if isinstance(e, (list, tuple)) else e for e in self.classes]
            object.__setattr__(self, "classes", tuple(entries))
        _check(self.mapping())

    def mapping(self) -> Classes:
        return self.classes if self.classes is not None else same_names(self.student_names, self.teacher_names)


def _check(mapping: Classes) -> None:
    known = [entry for entry in mapping if entry is not None]
    if len(known) < 2:
        raise UsageError(f"MappedClasses: {len(known)} shared class; a distribution needs two or more")
    numbers = [number for entry in known for number in (entry if isinstance(entry, tuple) else (entry,))]
    if any(entry == () for entry in known) or any(
        isinstance(number, bool) or not isinstance(number, int) or number < 0 for number in numbers
    ):
        raise UsageError(f"MappedClasses: classes={mapping!r} must hold class numbers, groups of them, or None")
    if len(set(numbers)) != len(numbers):
        raise UsageError(
            f"MappedClasses: the teacher's class {next(n for n in numbers if numbers.count(n) > 1)} is named twice: its probability "
            "can be given to one class only"
        )


@dataclass(frozen=True)
class MappedTokens(_Mapped):
    """An objective on logits for a student and a teacher with different vocabularies: words that are the same text correspond.

    student_tokenizer, teacher_tokenizer: transformers folders or hub names. A word is compared by the bytes it stands for, so "Ġthe",
    "▁the" and a WordPiece "the" are one; special tokens correspond to none. Words of only one side are left out of both
    distributions (`MappedClasses` says how), so the more the vocabularies share the better. aligned: the teacher's signal that says where
    both tokenizations have read the same text: `RetokenizedTeacher` gives it; None where both already have the same positions.

    Shapes: logits (B, L, S) and (B, L, C). Raises UsageError for vocabularies that share fewer than two words.
    """

    objective: Objective
    student_tokenizer: str
    teacher_tokenizer: str
    student: str = LOGITS
    teacher: str = LOGITS
    aligned: str | None = ALIGNED

    def mapping(self) -> Classes:
        return aligned_words(self.student_tokenizer, self.teacher_tokenizer)


@functools.lru_cache(maxsize=8)
def aligned_words(student: str, teacher: str) -> Classes:
    """For each token of one tokenizer the token or tokens of another that stand for the same bytes, or None."""
    from limbeck.datasets.surfaces import surfaces
    from limbeck.datasets.tokenize import load_tokenizer

    own, other = (surfaces(load_tokenizer(name)) for name in (student, teacher))
    places: dict[bytes, list[int]] = {}
    for number, surface in enumerate(other):
        if surface:
            places.setdefault(surface, []).append(number)
    made, given = [], set()
    for surface in own:
        found = places.get(surface) if surface and surface not in given else None
        given.add(surface)
        made.append(None if found is None else found[0] if len(found) == 1 else tuple(found))
    if sum(entry is not None for entry in made) < 2:
        raise UsageError(
            f"the tokenizers {student!r} and {teacher!r} share fewer than two words: SortedTargets() compares without a correspondence"
        )
    return tuple(made)


@dataclass(frozen=True)
class SortedTargets(Objective):
    """Universal logit distillation: the sorted probabilities agree, whatever the words are called.

    L = mean over positions of sum_i |p_(i) - q_(i)|,   p_(1) >= p_(2) >= ...: softmax(z / T), the shorter filled up with zeros

    It is the smallest L1 distance over all ways to pair the words of both sides: optimal transport in which no word is nearer to one
    word than to another. It says how sure the teacher is and among how many words it hesitates, not which; so it goes beside
    `CrossEntropy` (the authors add 1.5 times this). aligned: the teacher's signal that says which positions count
    (`RetokenizedTeacher`); None: all. positions: as in `SoftTargets`. Shapes: logits (..., S) and (..., C) at the same positions, widths as
    they may be.

    Source: Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", 2024. The
    paper's own equation was not read, the authors' code was: run beside it on answers of equal length, value and gradient agree
    to 1e-8. It too has no T^2 and takes the mean over the positions of an answer, not the sum. Deviations: the mean over all
    positions, where their code averages each answer first, so that a position of a short answer counts more there; positions are
    aligned by the text that was read, where they count from the beginning of both answers and cut the longer one.
    """

    temperature: float = 1.0
    aligned: str | None = None
    positions: str = "labelled"

    maps_classes = True

    def __post_init__(self) -> None:
        require_positive(self, "temperature", self.temperature)
        require_choice(self, "positions", self.positions, ("labelled", "all"))
        if self.aligned is not None:
            require_signal(self, "aligned", self.aligned)

    @property
    def reads(self) -> Reads:
        return Reads(frozenset({LOGITS}), frozenset({LOGITS} | ({self.aligned} if self.aligned else set())))

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = student.logits, teacher.logits.detach()
        if own.shape[:-1] != target.shape[:-1]:
            raise UsageError(
                f"{self.name}: the student's output has the shape {tuple(own.shape)} and the teacher's {tuple(target.shape)}; their "
                "positions must be the same"
            )
        if self.aligned:
            batch = where_aligned(batch, teacher[self.aligned], own.shape[:-1])
        weights = positions.weights(batch, own.shape[:-1], labels=self.positions == "labelled")
        q, p = (
            divergences.log_probabilities(positions.blank(z, weights), self.temperature)
            .exp()
            .sort(-1, descending=True)[0]
            for z in (own, target)
        )
        width = max(q.shape[-1], p.shape[-1])
        q, p = (torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q, p))
        return positions.mean((p - q).abs().sum(-1), weights)
