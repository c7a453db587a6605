"""compress: teacher, task and steps in; a smaller model, its measurements, an artifact, exports and a report page out.

The run's folder:

    out/steps/NN-NAME-KEY/   the model after each step, an artifact of its own, with the step's history
    out/work/                what a step that is under way keeps (checkpoints, caches); empty in the end
    out/measured/            quality and cost of every step, and the exported files they were measured on
    out/artifact/            the result: weights, architecture, recipe, report, model card, exports
    out/report.html          the report page

A step is done when its artifact is there under its key, a digest of all that decides it. The same command continues a run
that was cut off at any moment and ends with the same weights; a changed recipe reuses the steps it shares.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import artifact
from limbeck.budget import Budget
from limbeck.build import lineage
from limbeck.errors import DataError, UsageError
from limbeck.exports import files_of
from limbeck.files import digest, locked, write_text
from limbeck.folders import store_folder
from limbeck.jobs import Job, Source, from_python, from_recipe
from limbeck.objectives.base import terms_of
from limbeck.plan import apply
from limbeck.pruning import MaskKeeper
from limbeck.recipe import Recipe
from limbeck.signals import LOGITS, call, first_tensor
from limbeck.stages import Stage, assemble_report, measure_stages
from limbeck.steps import Change, Distill, QuantizationAware, Step, Train, describe_step
from limbeck.teachers import AveragedTeacher, EnsembleTeacher, FrozenTeacher, RetokenizedTeacher, build_cache
from limbeck.training import Distil, Supervised, Trainer
from limbeck.training.randomness import derived_seed


@dataclass(frozen=True)
class Result:
    """What a run made: the compressed model, its report (as in report.json) and the run's folder."""

    model: nn.Module
    report: dict[str, Any]
    folder: Path

    def save(self, folder: Path | str) -> None:
        """Copy the artifact elsewhere."""
        artifact.copy(self.folder / "artifact", folder)

    def table(self) -> Any:
        """The stages as a table for the terminal."""
        from limbeck.report import stage_table

        return stage_table(self.report)

    def to_json(self) -> dict[str, Any]:
        """Where everything is, and the report, for scripts."""
        return {
            "folder": str(self.folder),
            "artifact": str(self.folder / "artifact"),
            "page": str(self.folder / "report.html"),
            "weights": artifact.weights_digest(self.model),
            "report": self.report,
        }


def compress(
    teacher: nn.Module | None,
    task: Any,
    steps: Sequence[Any],
    *,
    student: nn.Module | None = None,
    budget: Budget | Mapping[str, Any] | None = None,
    export: Sequence[str | Mapping[str, Any]] = ("onnx",),
    out: Path | str = "runs/compressed",
    seed: int = 0,
    name: str = "compressed",
    measure: Mapping[str, Any] | None = None,
    baseline: bool = False,
    progress: bool = True,
) -> Result:
    """Compress a model. The teacher is used as it is; without a student, a copy of the teacher is made smaller.

    steps: `Distill`, `Train`, `QuantizationAware`, or any Transform. See `limbeck.recipe` for the same thing as a file.
    """
    job = from_python(
        teacher,
        task,
        steps,
        student=student,
        budget=budget,
        export=export,
        seed=seed,
        name=name,
        measure=measure,
        baseline=baseline,
    )
    return execute(job, out, progress)


def run_recipe(recipe: Recipe, out: Path | str, *, trust: Sequence[str] = (), progress: bool = True) -> Result:
    """Carry out a recipe in the folder `out`, or continue there."""
    return execute(from_recipe(recipe, trust), out, progress)


def execute(job: Job, out: Path | str, progress: bool = True) -> Result:
    """Run a job. Raises LimbeckError with nothing half-written; what was finished before stays and is used next time."""
    run = Run(job, Path(out), progress)
    with locked(run.out / ".lock", f"another run is writing to {run.out}"):
        stages = run.stages()
        measured = measure_stages(stages, job.task, job.measure, run.out / "measured", job.exports, progress, job.trust)
        report = assemble_report(job, stages, measured)
        model = stages[-1].load(job.trust)
        artifact.save(
            model,
            run.out / "artifact",
            recipe=job.spec,
            report=report,
            extra_files=files_of(measured.exports),
        )
        from limbeck.report import write_page

        write_page(report, run.out / "report.html")
        shutil.rmtree(run.out / "work", ignore_errors=True)
    return Result(model, report, run.out)


class Run:
    """The stages of one job in one folder."""

    def __init__(self, job: Job, out: Path, progress: bool):
        self.job, self.out, self.progress = job, out, progress
        write_text(out / "recipe.yaml", _as_yaml(job.spec))  # also finds a read-only folder before anything is trained
        self.data = {"task": job.task.digest(), "augmentation": job.task.augmentation}
        if job.task.size("train") == 0:
            raise DataError(f"the train split of {job.task.name} is empty")

    def stages(self) -> list[Stage]:
        job = self.job
        fits = self._task_fits_teacher()
        self.teachers = teachers = [self._teacher(source, number) for number, source in enumerate(job.teachers)]
        made = (
            list(teachers) if fits else []
        )  # of a teacher with other classes or tokens the task's metrics say nothing
        student_key = (
            digest({**self.data, "student": job.student.spec, "seed": job.seed}) if job.student else teachers[0].key
        )
        if job.baseline:
            made.append(self._baseline(student_key))
        previous: Stage | None = None
        for index, step in enumerate(job.steps):
            key = digest({"before": previous.key if previous else student_key, **self._decides(step, teachers)})
            previous = self._stage(
                self.out / "steps",
                index,
                step.name,
                key,
                lambda work, p=previous, s=step: self._do(s, p, teachers, work),
            )
            made.append(previous)
        return made

    def _decides(self, step: Step, teachers: Sequence[Stage]) -> dict[str, Any]:
        keys = [] if isinstance(step, Change) else [teacher.key for teacher in teachers]
        uses = keys if len(keys) > 1 else keys[0] if keys else None
        return {**self.data, "step": describe_step(step), "teacher": uses, "seed": self.job.seed}

    def _stage(self, parent: Path, index: int, name: str, key: str, make: Any) -> Stage:
        folder = parent / f"{index:02d}-{name}-{key[:12]}"
        stage = Stage(name, key, folder)
        if not artifact.is_artifact(folder):
            model, history = make(self.out / "work" / folder.name)
            extra = {"history.json": json.dumps(history, allow_nan=False).encode()} if history else {}
            artifact.save(model, folder, extra_files=extra)
        return stage

    def _teacher(self, source: Source, number: int) -> Stage:
        """A teacher's stage: trained in the shared store when the recipe trains it, else as it is."""
        name = "teacher" if len(self.job.teachers) == 1 else f"teacher-{number + 1}"
        if isinstance(source.model, nn.Module) and lineage(source.model) is None:
            return Stage(name, digest({"source": source.spec}), None, source.model)
        decides = {**self.data, "source": source.spec, "seed": source.seed if source.train else None}
        if isinstance(source.model, Mapping) and "path" in source.model and "class" not in source.model:
            decides["weights"] = artifact.info(source.model["path"])["weights"]
        key = digest(decides)
        if source.train is None:
            return self._stage(
                self.out / "steps", 0, name, key, lambda work: (source.build(self.job.trust, "teacher"), None)
            )
        store = store_folder() / "models"
        with locked(store / f".{key[:12]}.lock", None):
            made = self._stage(
                store, 0, "teacher", key, lambda work: self._train_source(source, store / f".work-{key[:12]}")
            )
        return Stage(name, key, made.folder)

    def _train_source(self, source: Source, work: Path) -> tuple[nn.Module, dict[str, Any]]:
        model = source.build(self.job.trust, "teacher.model")
        trainer = Trainer(
            source.train, work, seed=derived_seed(source.seed, "teacher"), progress=self.progress, title="teacher"
        )
        history = trainer.run(Supervised(model, source.objective or self.job.task), self.job.task)
        shutil.rmtree(work, ignore_errors=True)
        return model, history.to_json()

    def student(self, teachers: Sequence[Stage]) -> nn.Module:
        """The student as it is before the first step."""
        if self.job.student is not None:
            return copy.deepcopy(self.job.student.build(self.job.trust, "student"))
        return teachers[0].load(self.job.trust)

    def _baseline(self, student_key: str) -> Stage:
        step = next((s for s in self.job.steps if isinstance(s, Distill)), None)
        if step is None or self.job.student is None:
            raise UsageError(
                "baseline: it trains the student under the first distill step's schedule; there is no such step or no student"
            )
        key = digest(
            {"before": student_key, **self.data, "baseline": describe_step(Train(step.train)), "seed": self.job.seed}
        )

        def make(work: Path) -> tuple[nn.Module, dict[str, Any]]:
            return self._train(Train(step.train, name="baseline"), self.student(()), (), work, step.name)

        return self._stage(self.out / "steps", 0, "baseline", key, make)

    def _do(
        self, step: Step, previous: Stage | None, teachers: Sequence[Stage], work: Path
    ) -> tuple[nn.Module, dict[str, Any] | None]:
        model = previous.load(self.job.trust) if previous is not None else self.student(teachers)
        if isinstance(step, Change):
            plan = step.transform.plan(model, self.job.task, self.job.budget)
            return apply(model, plan), None
        return self._train(step, model, teachers, work, step.name)

    def _train(
        self, step: Step, model: nn.Module, teachers: Sequence[Stage], work: Path, seed_name: str
    ) -> tuple[nn.Module, dict[str, Any]]:
        task, seed = self.job.task, derived_seed(self.job.seed, seed_name)
        finish = None
        masks = MaskKeeper(model)
        if isinstance(step, QuantizationAware):
            from limbeck.quantization import finish_qat, prepare_qat

            plan = step.quantize.plan(model, task, self.job.budget)
            model = prepare_qat(model, plan, learned=step.learned, average=step.average)
            finish = finish_qat
        trainer = Trainer(step.train, work, seed=seed, progress=self.progress, title=step.name)
        if isinstance(step, Train) or (isinstance(step, QuantizationAware) and step.objective is None):
            procedure = Supervised(model, step.objective or task)
        else:
            teacher = self.signals(step, teachers, seed, work)
            procedure = Distil(model, teacher, step.objective, getattr(step, "balance", None))
        history = trainer.run(masks.follow(procedure), task)
        if finish is not None:
            model, plan = finish(model, task)
            model = apply(model, plan)
        return model, history.to_json()

    def signals(self, step: Step, teachers: Sequence[Stage], seed: int, work: Path) -> Any:
        """The Teacher of a step."""
        if isinstance(step, Distill) and step.teacher == "average":
            return AveragedTeacher()
        if not teachers:
            raise UsageError(f"step {step.name!r} distils, and the recipe has no teacher")
        members = [FrozenTeacher(stage.load(self.job.trust), precision=step.train.precision) for stage in teachers]
        frozen = members[0] if len(members) == 1 else EnsembleTeacher(members)
        tokenizers = getattr(step, "tokenizers", None)
        if tokenizers is not None:
            frozen = RetokenizedTeacher(frozen, tokenizers["student"], tokenizers["teacher"])
        cache = getattr(step, "cache", None)
        if cache is None:
            return frozen
        config, data = step.train, self.job.task
        used = config.epochs or config.steps / config.steps_per_epoch(data.size("train"))
        return build_cache(
            frozen,
            data,
            work.parent / f"{work.name}-cache",
            passes=math.ceil(used),
            seed=seed,
            batch_size=config.batch_size,
            augment=config.augment,
            limit=config.limit,
            progress=self.progress,
            **{"names": sorted(step.objective.reads.teacher - {LOGITS}), **cache},
        )

    def _task_fits_teacher(self) -> bool:
        """Whether the teacher answers in the task's classes and tokens; refuses, before anything is trained, outputs that differ unmapped."""
        job = self.job
        steps = [step for step in job.steps if isinstance(step, Distill) and step.teacher is None]
        if any(step.tokenizers for step in steps):
            return False
        terms = [term for step in steps for term, _ in terms_of(step.objective) if LOGITS in term.reads.teacher]
        if not job.teachers or job.student is None or not terms:
            return True
        width = {}
        for role, source in (("teacher", job.teachers[0]), ("student", job.student)):
            model = source.build(job.trust, role)
            mode = model.training
            with torch.no_grad():
                output = first_tensor(call(model.eval(), job.task.example(2)))
                width[role] = output.shape[
                    1 if output.dim() == 4 else -1
                ]  # a map (B, classes, H, W) has them before its places
            model.train(mode)
        mapped = all(getattr(t, "maps_classes", False) or getattr(t, "classes", None) is not None for t in terms)
        classes = len(job.task.classes) if job.task.classes is not None else width["student"]
        if width["student"] != classes or (job.task.classes is not None and width["teacher"] != classes and not mapped):
            raise UsageError(
                f"the task has {classes} classes; the teacher puts out {width['teacher']} and the student {width['student']}. Where the "
                "teacher's are others on purpose, say which correspond: MappedClasses"
            )
        return width["teacher"] == classes


def _as_yaml(spec: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True, width=110)
