"""Steps: what a recipe does to the student, in order.

A step in YAML is a mapping of one verb to its fields; in Python it is one of the classes here, or any Transform as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from limbeck import vocabulary
from limbeck.errors import UsageError, did_you_mean
from limbeck.training import TrainingConfig
from limbeck.training.balance import as_balance, require_terms

TRANSFORMS = {
    "prune": "Prune",
    "prune_layers": "PruneLayers",
    "trim_vocabulary": "TrimVocabulary",
    "sparsify": "Sparsify",
    "low_rank": "LowRank",
    "fold_batch_norm": "FoldBatchNorm",
    "quantize": "Quantize",
}
TRAINED = ("distill", "train", "quantization_aware")
VERBS = (*TRAINED, *TRANSFORMS, "transform")


@dataclass(frozen=True)
class Distill:
    """Train the student on a teacher's signals.

    objective: what is minimized. train: the schedule. teacher: None for the recipe's frozen teacher, or "average" for an
    exponential moving average of the student itself. cache: fields of `build_cache` (top_k, ...) to run the teacher once and
    read its signals from disk; None runs it along. balance: how the terms of the objective weigh against each other: None or
    "fixed" (as given), "gradient_norm", "uncertainty", or one of `limbeck.training` with settings. tokenizers: {student: ..., teacher:
    ...}, folders or hub names, for a language model that teaches one with another tokenizer; see `RetokenizedTeacher`.
    """

    objective: Any
    train: TrainingConfig
    teacher: str | None = None
    cache: Mapping[str, Any] | None = None
    name: str = "distill"
    balance: Any = None
    tokenizers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "balance", as_balance(self.balance))
        require_terms(self.objective, self.balance)
        if self.tokenizers is not None and set(self.tokenizers) != {"student", "teacher"}:
            raise UsageError(
                f"tokenizers={self.tokenizers!r}: name both, {{student: a folder, teacher: a folder}}; see RetokenizedTeacher"
            )


@dataclass(frozen=True)
class Train:
    """Train the student alone, on the task loss or on an objective that reads no teacher."""

    train: TrainingConfig
    objective: Any = None
    name: str = "train"


@dataclass(frozen=True)
class QuantizationAware:
    """Train the student with its quantization simulated, then quantize it on the grid that was trained.

    quantize: fields of `Quantize`. learned: weight scales and input steps are learned (LSQ); "clip": the inputs' upper ends (PACT). average: decay of the moving
    average that input ranges follow, e.g. 0.99; None keeps the calibrated ones.
    """

    quantize: Any
    train: TrainingConfig
    objective: Any = None
    learned: bool | str = False
    average: float | None = None
    name: str = "quantization_aware"


@dataclass(frozen=True)
class Change:
    """Apply a Transform."""

    transform: Any
    name: str


Step = Distill | Train | QuantizationAware | Change


def training_config(value: Any, where: str) -> TrainingConfig:
    """A TrainingConfig from a recipe's mapping. Raises UsageError for an unknown field."""
    if isinstance(value, TrainingConfig):
        return value
    if not isinstance(value, Mapping):
        raise UsageError(f"{where}: expected a mapping of training settings such as {{epochs: 10}}, got {value!r}")
    vocabulary.check_fields(TrainingConfig, value, where)
    try:
        return TrainingConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error


def verb_fields(verb: str) -> dict[str, Any]:
    """The fields a verb takes; nested mappings for the training settings."""
    train = {field.name: None for field in dataclasses.fields(TrainingConfig)}
    if verb in TRANSFORMS:
        made = vocabulary.names("transform")[TRANSFORMS[verb]]
        return {**dict.fromkeys(vocabulary.parameters(made)), "name": None}
    if verb == "transform":
        return {"class": None, "name": None}
    made = {"distill": Distill, "train": Train, "quantization_aware": QuantizationAware}[verb]
    return {f.name: train if f.name == "train" else None for f in dataclasses.fields(made)}


def parse_step(value: Any, where: str, trust: Iterable[str] = ()) -> Step:
    """A step from its YAML form, or a Python step or Transform as it is."""
    if isinstance(value, (Distill, Train, QuantizationAware, Change)):
        return value
    if hasattr(value, "plan"):
        return Change(value, type(value).__name__.lower())
    if not isinstance(value, Mapping) or len(value) != 1:
        raise UsageError(f"{where}: a step is a mapping of one verb ({', '.join(VERBS)}) to its fields, got {value!r}")
    verb, body = next(iter(value.items()))
    if verb not in VERBS:
        raise UsageError(f"{where}: no step is called {verb!r}. {did_you_mean(str(verb), VERBS)}")
    body = dict(body or {})
    where = f"{where}.{verb}"
    name = str(body.pop("name", verb))
    if verb in TRAINED:
        return _trained(verb, name, body, where, trust)
    spec = body if verb == "transform" else {"class": TRANSFORMS[verb], **body}
    return Change(vocabulary.construct(spec, "transform", where, trust), name)


def _trained(verb: str, name: str, body: dict[str, Any], where: str, trust: Iterable[str]) -> Step:
    made = {"distill": Distill, "train": Train, "quantization_aware": QuantizationAware}[verb]
    if verb == "quantization_aware":
        body.setdefault("quantize", {})
    vocabulary.check_fields(made, body, where)
    body["train"] = training_config(body["train"], f"{where}.train")
    if body.get("objective") is not None:
        body["objective"] = vocabulary.objective(body["objective"], f"{where}.objective", trust)
    if verb == "quantization_aware":
        body["quantize"] = vocabulary.construct(
            {"class": "Quantize", **body["quantize"]}, "transform", f"{where}.quantize", trust
        )
    if isinstance(body.get("balance"), Mapping):
        body["balance"] = vocabulary.construct(body["balance"], "balance", f"{where}.balance", trust)
    if verb == "distill" and body.get("teacher") not in (None, "average"):
        raise UsageError(
            f"{where}.teacher: {body['teacher']!r} is not known; leave it out for the recipe's teacher, or say 'average'"
        )
    try:
        return made(name=name, **body)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def describe_step(step: Step) -> dict[str, Any]:
    """The YAML form of a step."""
    if isinstance(step, Change):
        spec = vocabulary.describe(step.transform)
        verbs = {v: k for k, v in TRANSFORMS.items()}
        verb = verbs.get(spec["class"], "transform")
        fields = {k: v for k, v in spec.items() if k != "class" or verb == "transform"}
        return {verb: {**fields, **({"name": step.name} if step.name not in (verb, spec["class"].lower()) else {})}}
    verb = {Distill: "distill", Train: "train", QuantizationAware: "quantization_aware"}[type(step)]
    spec = {k: v for k, v in vocabulary.describe(step).items() if k != "class"}
    for key in ("train", "quantize"):
        if isinstance(spec.get(key), dict):
            spec[key] = {k: v for k, v in spec[key].items() if k != "class"}
    return {verb: spec}
