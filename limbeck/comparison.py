"""compare: one student under several objectives, side by side, so that one can be chosen well.

    out/steps/                  teacher, steps before the distillation, and one student per objective and seed
    out/measured/               what was measured of them, on the validation split
    out/comparison.json         everything that is shown
    out/comparison.html         the page

The recipe gives the task, the teacher, the student and, in its first distill step, the schedule; every objective takes that step's
place. Students of one seed start from the same weights and see the same batches, so their differences are paired by seed; the teacher is
trained once. Comparing is choosing: the test split is never read. The same command continues a run that was cut off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck import __version__, vocabulary
from limbeck.choices import named_objectives
from limbeck.errors import DataError, TrainingError, UsageError, did_you_mean
from limbeck.experiments.statistics import paired_difference, verdict
from limbeck.files import digest, locked, write_json, write_text
from limbeck.jobs import Job, from_recipe
from limbeck.measure import environment, quality_torch
from limbeck.measure.quality import better_of
from limbeck.objectives.base import Objective, terms_of
from limbeck.parallel import processes
from limbeck.pipeline import Run
from limbeck.progress import bar
from limbeck.recipe import Recipe
from limbeck.stages import Stage
from limbeck.steps import Distill
from limbeck.training import Distil
from limbeck.training.probe import loss_scales, step_costs
from limbeck.training.randomness import derived_seed

SPLIT = "validation"
COMPARED = ("calibration_error",)  # beside the task's own metric, where the task has it


def compare(
    recipe: Recipe | Path | str,
    objectives: str | Mapping[str, Any] | Sequence[Any],
    out: Path | str,
    *,
    seeds: int = 3,
    against: str | None = None,
    steps: int = 10,
    rounds: int = 5,
    jobs: int = 1,
    trust: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Train a recipe's student under several objectives; returns the content of comparison.json.

    objectives: two or more, as text for `named_objectives` ("recipe, CrossEntropy+SoftTargets{temperature: 2}"), as {name: objective or
    spec}, or a list of such. seeds: from the recipe's own on. against: the name of the objective that the others are compared with; the
    first when absent. steps: over which the scales of the terms are averaged. rounds: of the cost measurement. jobs: students
    that train at the same time, each in a process of its own with its share of the threads.

    Raises UsageError for a recipe without a distill step, for fewer than two objectives and for names that are not there.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    for name, count in (("seeds", seeds), ("jobs", jobs)):
        if count < 1:
            raise UsageError(f"{name}={count}: at least one is needed")
    out = Path(out)
    run = _Comparison(recipe, objectives, out, against, tuple(trust), progress)
    with locked(out / ".lock", f"another run is writing to {out}"):
        found = run.go(seeds, steps, rounds, jobs)
        shutil.rmtree(out / "work", ignore_errors=True)
    return found


class _Comparison:
    def __init__(self, recipe: Recipe, objectives: Any, out: Path, against: str | None, trust: tuple, progress: bool):
        self.recipe, self.out, self.trust, self.progress = recipe, out, trust, progress
        job = self._job(recipe.seed)
        at = next((i for i, step in enumerate(job.steps) if isinstance(step, Distill)), None)
        if at is None:
            raise UsageError("compare: the recipe has no distill step, whose objective could be another")
        self.before, self.step = job.steps[:at], job.steps[at]
        self.objectives: dict[str, Objective] = named_objectives(objectives, self.step.objective, trust)
        if len(self.objectives) < 2:
            raise UsageError(f"compare: {len(self.objectives)} objective given; name two or more")
        self.against = against if against is not None else next(iter(self.objectives))
        if self.against not in self.objectives:
            raise UsageError(f"compare: no objective is called {against!r}. {did_you_mean(against, self.objectives)}")
        self.task = job.task
        if not self.task.size(SPLIT):
            raise DataError(f"the {SPLIT} split of {self.task.name} is empty: there is nothing to compare on")

    def _job(self, seed: int) -> Job:
        """The recipe under another seed, with the teacher of the recipe's own seed."""
        given = self.recipe.teacher
        kept = [t.model_copy(update={"seed": self.recipe.seed if t.seed is None else t.seed}) for t in _listed(given)]
        changed = {"seed": seed, "teacher": kept if isinstance(given, list) else kept[0] if kept else None}
        job = from_recipe(self.recipe.model_copy(update=changed), self.trust)
        return dataclasses.replace(job, baseline=False, spec=self.recipe.to_json())

    def _step(self, name: str) -> Distill:
        objective = self.objectives[name]
        balance = self.step.balance if len(terms_of(objective)) > 1 else None
        return dataclasses.replace(self.step, objective=objective, balance=balance)

    def student(self, name: str, seed: int) -> Stage:
        """The student of one objective and one seed, trained unless it is there."""
        run = Run(dataclasses.replace(self._job(seed), steps=(*self.before, self._step(name))), self.out, self.progress)
        with _named(name, seed):
            return run.stages()[-1]

    def _side_by_side(self, seeds: Sequence[int], jobs: int) -> None:
        """Train all students, `jobs` at a time. What comes before them in the recipe is there first, for nobody makes it twice."""
        if self.before:
            for seed in seeds:
                Run(dataclasses.replace(self._job(seed), steps=self.before), self.out, self.progress).stages()
        own = (self.recipe, self.objectives, self.out, self.against, self.trust)
        calls = {(seed, name): (*own, name, seed) for seed in seeds for name in self.objectives}
        threads = max(1, torch.get_num_threads() // jobs)
        with bar("students", len(calls), self.progress) as shown, processes(jobs, threads) as run:
            for done, ((seed, name), _) in enumerate(run(_train, calls), 1):
                shown.update(done, f"{name}, seed {seed}")

    def go(self, seeds: int, steps: int, rounds: int, jobs: int) -> dict[str, Any]:
        scales, costs = self._looked_at(steps, rounds)
        if jobs > 1:
            self._side_by_side(range(self.recipe.seed, self.recipe.seed + seeds), jobs)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in self.objectives}
        for seed in range(self.recipe.seed, self.recipe.seed + seeds):
            job = self._job(seed)
            for name in self.objectives:
                results[name].append({"seed": seed, **self._measured(self.student(name, seed), job)})
            found = self._summary(results, scales, costs)
            write_json(self.out / "comparison.json", found)
        from limbeck.report.comparison import comparison_page

        write_text(self.out / "comparison.html", comparison_page(found))
        return found

    def _looked_at(self, steps: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The scales of every objective's terms and the costs of its steps, at the first seed."""
        job = self._job(self.recipe.seed)
        run = Run(dataclasses.replace(job, steps=self.before), self.out, self.progress)
        before = run.stages()[-len(self.before) :] if self.before else run.stages()[:0]
        teachers = run.teachers
        keys = [stage.key for stage in (*teachers, *before)]
        described = {
            name: [vocabulary.describe(o), vocabulary.describe(self._step(name))] for name, o in self.objectives.items()
        }
        hardware = environment()
        asked = digest(
            [keys, described, job.seed, steps, rounds, __version__, hardware.get("cpu"), hardware.get("threads")]
        )
        record = self.out / "measured" / f"objectives-{asked[:12]}.json"
        if record.exists():
            known = json.loads(record.read_text())
            return known["scales"], known["costs"]
        work = self.out / "work" / "looked-at"
        seed = derived_seed(job.seed, self.step.name)
        teacher = None
        procedures = {}
        for name in self.objectives:
            step = self._step(name)
            if teacher is None or step.cache is not None:
                teacher = run.signals(step, teachers, seed, work / digest(described[name])[:12])
            student = before[-1].load(self.trust) if before else run.student(teachers)
            procedures[name] = Distil(student, teacher, step.objective, step.balance)
        scales = {}
        for name, one in procedures.items():
            with _named(name, job.seed):
                scales[name] = loss_scales(one, self.task, self.step.train, seed, steps)
        costs = {
            name: {kind: found.to_json() for kind, found in cost.items()}
            for name, cost in step_costs(procedures, self.task, self.step.train, seed, rounds).items()
        }
        write_json(record, {"scales": scales, "costs": costs})
        return scales, costs

    def _measured(self, stage: Stage, job: Job) -> dict[str, Any]:
        """The metrics of one student on the validation split, and how long it trained."""
        asked = digest([stage.key, SPLIT, job.measure.limit, __version__])
        record = self.out / "measured" / f"{stage.label}-{SPLIT}.json"
        if record.exists():
            known = json.loads(record.read_text())
            if known["asked"] == asked:
                return known["found"]
        quality = quality_torch(stage.load(self.trust), self.task, SPLIT, limit=job.measure.limit)
        found = {
            "metrics": {name: m.value for name, m in quality.measurements.items()},
            "training_seconds": (stage.history or {}).get("seconds"),
        }
        write_json(record, {"asked": asked, "found": found})
        return found

    def _summary(self, results: Mapping[str, list], scales: Mapping, costs: Mapping) -> dict[str, Any]:
        task, done = self.task, min(len(rows) for rows in results.values())
        metrics = list(results[self.against][0]["metrics"])
        rows = []
        for name, runs in results.items():
            values = {metric: [run["metrics"][metric] for run in runs[:done]] for metric in metrics}
            rows.append(
                {
                    "name": name,
                    "objective": vocabulary.describe(self.objectives[name]),
                    "metrics": {metric: _spread(found) for metric, found in values.items()},
                    "training_seconds": [run["training_seconds"] for run in runs[:done]],
                    "scales": scales[name],
                    "costs": costs[name],
                }
            )
        return {
            "format": 1,
            "name": self.recipe.name,
            "seeds": [run["seed"] for run in results[self.against][:done]],
            "split": SPLIT,
            "against": self.against,
            "task": {"name": task.name, "metric": task.metric, "better": task.better},
            "environment": environment(),
            "recipe": self.recipe.to_json(),
            "objectives": rows,
            "comparisons": self._differences(rows, metrics) if done > 1 else [],
        }

    def _differences(self, rows: list[dict[str, Any]], metrics: list[str]) -> list[dict[str, Any]]:
        """Each objective against the reference, by the task's metric and by calibration; positive is better."""
        reference = next(row for row in rows if row["name"] == self.against)
        made = []
        for row in rows:
            for metric in (self.task.metric, *COMPARED):
                if row is reference or metric not in metrics:
                    continue
                better = better_of(metric, self.task)
                sides = [side["metrics"][metric]["values"] for side in (row, reference)]
                found = paired_difference(*sides, better)
                made.append(
                    {
                        "objective": row["name"],
                        "against": self.against,
                        "metric": metric,
                        "better": better,
                        **found.to_json(),
                        "verdict": verdict(found),
                    }
                )
        return made


def _train(
    recipe: Recipe,
    objectives: Mapping[str, Objective],
    out: Path,
    against: str,
    trust: tuple[str, ...],
    name: str,
    seed: int,
) -> None:
    """One student, in a process of its own."""
    _Comparison(recipe, objectives, out, against, trust, False).student(name, seed)


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given is not None else []


@contextlib.contextmanager
def _named(name: str, seed: int) -> Iterator[None]:
    """Training that stops says under which objective."""
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"objective {name!r}, seed {seed}: {error}") from error


def _spread(values: list[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"values": values, "mean": statistics.fmean(values), "deviation": deviation}
