"""Job: a recipe with its names resolved to objects, ready to run.

A recipe file and a Python call both become a Job. Its `spec` is the recipe as plain JSON; every stage's key is a digest of the
part of the spec that decides it, so that a changed recipe reuses the stages it shares with an earlier run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from limbeck import vocabulary
from limbeck.budget import Budget
from limbeck.errors import UsageError
from limbeck.exports import form_of
from limbeck.recipe import Measure, ModelSource, Recipe
from limbeck.steps import Distill, Step, describe_step, parse_step, training_config
from limbeck.training import TrainingConfig
from limbeck.training.randomness import derived_seed


@dataclass(frozen=True)
class Source:
    """Where a model comes from. `spec` is JSON that decides its weights together with the seed and the task.

    model: a module as it is, or a spec that `build` constructs. train: its training, None when it comes trained.
    """

    spec: Any
    model: nn.Module | Mapping[str, Any] | str
    train: TrainingConfig | None = None
    objective: Any = None
    seed: int = 0

    def build(self, trust: Iterable[str], where: str) -> nn.Module:
        """The module, freshly made from the source's seed or loaded."""
        if isinstance(self.model, nn.Module):
            return self.model
        if isinstance(self.model, Mapping) and "path" in self.model and "class" not in self.model:
            from limbeck.artifact import load

            return load(self.model["path"], trust=trust)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, "model"))
            made = vocabulary.construct(self.model, "model", where, trust)
        if not isinstance(made, nn.Module):
            raise UsageError(f"{where}: {self.model!r} made {type(made).__name__}, not a model")
        return made


@dataclass(frozen=True)
class Job:
    """Everything `limbeck.pipeline.execute` needs."""

    name: str
    seed: int
    task: Any
    teachers: tuple[Source, ...]
    student: Source | None
    steps: tuple[Step, ...]
    baseline: bool = False
    budget: Budget = field(default_factory=Budget)
    exports: tuple[str | dict[str, Any], ...] = ("onnx",)
    measure: Measure = field(default_factory=Measure)
    trust: tuple[str, ...] = ()
    spec: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.teachers and self.student is None:
            raise UsageError("a recipe needs a teacher, a student or both: there is no model to compress")
        if len(self.teachers) > 1 and self.student is None:
            raise UsageError("with several teachers, name the student: none of them is the one to be made smaller")
        if not self.teachers and any(isinstance(step, Distill) and step.teacher is None for step in self.steps):
            raise UsageError("a distill step needs the recipe's teacher, and there is none")
        forms = [form_of(one)[0] for one in self.exports]
        if twice := {form for form in forms if forms.count(form) > 1}:
            raise UsageError(f"exports: {sorted(twice)[0]!r} is there twice; one file of each form is written")


def from_recipe(recipe: Recipe, trust: Iterable[str] = ()) -> Job:
    """Resolve a recipe's names. Raises UsageError for the first that means nothing, before anything runs."""
    trust = tuple(trust)
    task = vocabulary.construct(recipe.task, "task", "task", trust)
    given = recipe.teacher if isinstance(recipe.teacher, list) else [recipe.teacher] if recipe.teacher else []
    teachers = tuple(
        _source(source, recipe.seed, f"teacher[{i}]" if len(given) > 1 else "teacher", trust)
        for i, source in enumerate(given)
    )
    if recipe.student in (None, "teacher"):
        student = None
    else:
        _check_model(recipe.student, "student", trust)
        student = Source(recipe.student, recipe.student, seed=recipe.seed)
    steps = tuple(parse_step(step, f"steps[{i}]", trust) for i, step in enumerate(recipe.steps))
    return Job(
        recipe.name,
        recipe.seed,
        task,
        teachers,
        student,
        steps,
        recipe.baseline,
        Budget.from_mapping(recipe.budget),
        tuple(one if isinstance(one, str) else one.model_dump(exclude_none=True) for one in recipe.exports),
        recipe.measure,
        trust,
        recipe.to_json(),
    )


def _source(source: ModelSource, seed: int, where: str, trust: tuple[str, ...]) -> Source:
    _check_model(source.model, f"{where}.model", trust)
    train = training_config(source.train, f"{where}.train") if source.train is not None else None
    objective = (
        vocabulary.objective(source.objective, f"{where}.objective", trust) if source.objective is not None else None
    )
    own = source.seed if source.seed is not None else seed
    return Source(source.model_dump(exclude={"seed"}, exclude_none=True), source.model, train, objective, own)


def _check_model(spec: Any, where: str, trust: tuple[str, ...]) -> None:
    if isinstance(spec, Mapping) and "path" in spec and "class" not in spec:
        extra = set(spec) - {"path"}
        if extra:
            raise UsageError(
                f"{where}: {sorted(extra)[0]!r} is not allowed beside 'path'; name a class, or only a path"
            )
        return
    name = spec if isinstance(spec, str) else spec.get("class") if isinstance(spec, Mapping) else None
    if not isinstance(name, str):
        raise UsageError(f"{where}: expected a model's class or {{path: an artifact folder}}, got {spec!r}")
    made = vocabulary.find(name, "model", where, trust)
    fields = {} if isinstance(spec, str) else {k: v for k, v in spec.items() if k != "class"}
    vocabulary.check_fields(made, fields, where)


def from_python(
    teacher: nn.Module | None,
    task: Any,
    steps: Sequence[Any],
    *,
    student: nn.Module | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    export: Sequence[str | Mapping[str, Any]] = ("onnx",),
    seed: int = 0,
    name: str = "compressed",
    measure: Measure | Mapping[str, Any] | None = None,
    baseline: bool = False,
) -> Job:
    """A Job from objects. The teacher is used as it is; without a student the first Distill step's is taken, or a copy of the teacher."""
    parsed = tuple(parse_step(step, f"steps[{i}]") for i, step in enumerate(steps))
    if not parsed:
        raise UsageError("steps: the list is empty; name at least one step")
    measure = measure if isinstance(measure, Measure) else Measure(**(measure or {}))
    limits = Budget.from_mapping(budget)
    spec = {
        "name": name,
        "seed": seed,
        "task": vocabulary.describe(task),
        "steps": [describe_step(step) for step in parsed],
        "exports": list(export),
        "measure": measure.model_dump(exclude_none=True),
        "baseline": baseline,
    }
    sources = {}
    for role, model in (("teacher", teacher), ("student", student)):
        if model is None:
            sources[role] = None
            continue
        described = vocabulary.describe(model)
        sources[role] = Source({**described, "weights": _digest(model)}, model, seed=seed)
        spec[role] = {"model": described} if role == "teacher" else described
    if budget is not None:
        spec["budget"] = {k: v for k, v in vocabulary.describe(limits).items() if k != "class"}
    return Job(
        name,
        seed,
        task,
        (sources["teacher"],) if sources["teacher"] else (),
        sources["student"],
        parsed,
        baseline,
        limits,
        tuple(export),
        measure,
        (),
        spec,
    )


def _digest(model: nn.Module) -> str:
    from limbeck.artifact import weights_digest

    return weights_digest(model)
