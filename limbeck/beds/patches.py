"""Vision transformers on small images: teachers that learnt with and without labels, students that are distilled and then fine-tuned.

Images are grey. Distillation sees many of them without labels; fine-tuning has few labelled ones, of the same images or of their
negatives (what infrared is to a photograph: the same shapes, other brightness).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.measure.latency import evaluating
from limbeck.models.initialize import unit_variance
from limbeck.models.vit import ViT, vit
from limbeck.objectives import CrossEntropy, Objective
from limbeck.tasks import ImageClassification
from limbeck.training import Distil, MaskedImages, TrainingConfig


@functools.lru_cache(maxsize=4)
def _task(dataset: str, size: int, crop: int, counts: tuple[tuple[str, int], ...]) -> ImageClassification:
    settings = {"size": size, "channels": 1, "mean": (0.5,), "std": (0.25,), "crop": crop}
    return ImageClassification(dataset, examples=dict(counts), **settings)


class Negative(nn.Module):
    """A model that sees the negatives of images whose pixels are centred at 0."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.inner = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.inner(-pixel_values)


@dataclass(frozen=True, kw_only=True)
class PatchBed(Bed):
    """Images in patches, teachers and a student.

        dataset, size, crop: see `ImageClassification`. patch: side of a patch. train: images without labels, labelled: those of them whose
        labels fine-tuning has. teacher, student: (depth, width); heads: of both. Steps: masked and supervised of the teachers, distilling
        and tuning of a student. negatives: whether fine-tuning and measuring are on negatives. unit_start: whether networks begin with `limbeck.models.initialize.unit_variance`; with the usual first weights networks
    this narrow learn little, and differently with every seed.

            bed.masked(run), bed.supervised(run)       the two teachers, from the store
            bed.fine_tuned(run)                        the first after it saw the few labels
            bed.new_student(run)                       an untrained student of the run's seed
            bed.distil(run, student, objective, teacher)   on the images without labels, counted
            bed.tuned(run, student)                    fine-tune on the few labels, counted, and measure
    """

    name: str
    dataset: str = "mnist"
    size: int = 12
    patch: int = 3
    crop: int = 1
    train: int = 5000
    labelled: int = 500
    validation: int = 2000
    test: int = 5000
    teacher: tuple[int, int] = (6, 48)
    student: tuple[int, int] = (3, 32)
    heads: int = 4
    masked_steps: int = 1500
    supervised_steps: int = 1200
    distilling_steps: int = 300
    tuning_steps: int = 500
    batch_size: int = 32
    learning_rate: float = 3e-3
    negatives: bool = False
    unit_start: bool = False
    expects: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def task(self) -> ImageClassification:
        """The images, loaded once per process."""
        counts = (("train", self.train), ("validation", self.validation), ("test", self.test))
        return _task(self.dataset, self.size, self.crop, counts)

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings()})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"data": self.dataset, "settings": self.settings()}

    def network(self, depth: int, width: int) -> ViT:
        """An untrained vision transformer for these images."""
        model = vit(self.size, self.patch, len(self.task().classes), 1, depth, width, self.heads)
        return unit_variance(model) if self.unit_start else model

    def config(self, steps: int, **more: Any) -> TrainingConfig:
        """The bed's way to train: AdamW, a cosine schedule with warm-up, gradients clipped at 1."""
        settings = {
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": 0.05,
            "warmup": 0.1,
        }
        return TrainingConfig(steps=steps, **(settings | {"gradient_clipping": 1.0, "schedule": "cosine"} | more))

    def _taught(self, run: Run, what: str, steps: int, procedure: Any) -> ViT:
        config = self.config(steps)
        key = {"kind": f"patch teacher, {what}", "version": 1, "data": [self.task().digest(), self.task().augmentation]}
        start = ["unit variance"] if self.unit_start else []
        key |= {"architecture": [*self.teacher, self.patch, self.heads, *start], "training": config.to_json()}

        def train(model: ViT) -> None:
            run.train(procedure(model), self.task(), config, seed=0, counted=False)

        return run.trained(key, lambda: self.network(*self.teacher), train)

    def masked(self, run: Run) -> ViT:
        """The teacher that learnt without labels, as a masked autoencoder; its head is untrained."""
        return self._taught(run, "masked", self.masked_steps, MaskedImages)

    def supervised(self, run: Run) -> ViT:
        """The teacher that learnt from the labels of all images."""
        return self._taught(run, "supervised", self.supervised_steps, lambda m: Distil(m, None, CrossEntropy()))

    def fine_tuned(self, run: Run) -> ViT:
        """The masked teacher after it learnt from the few labels, as students do, on the images themselves."""
        source, config = self.masked(run), self.config(self.tuning_steps, limit=self.labelled)
        key = {"kind": "patch teacher, fine-tuned", "version": 1, "bed": self.digest()}

        def make() -> ViT:
            model = self.network(*self.teacher)
            model.load_state_dict(source.state_dict())
            return model

        def train(model: ViT) -> None:
            run.train(Distil(model, None, CrossEntropy()), self.task(), config, seed=0, counted=False)

        return run.trained(key, make, train)

    def new_student(self, run: Run) -> ViT:
        return run.fresh(lambda: self.network(*self.student))

    def distil(self, run: Run, student: ViT, objective: Objective, teacher: Any, **changes: Any) -> ViT:
        """Train the student in place on the images without labels, for `distilling_steps` unless changed."""
        steps = changes.pop("steps", self.distilling_steps)
        run.train(Distil(student, teacher, objective), self.task(), self.config(steps, **changes))
        return student

    def tuned(
        self, run: Run, student: nn.Module, objective: Objective | None = None, teacher: Any = None, **changes: Any
    ) -> dict[str, float]:
        """Fine-tune on the few labels, or on `objective` with a teacher, for `tuning_steps` unless changed, and measure on the run's split."""
        model = Negative(student) if self.negatives else student
        steps = changes.pop("steps", self.tuning_steps)
        settings = {"limit": self.labelled, **changes}
        run.train(Distil(model, teacher, objective or CrossEntropy()), self.task(), self.config(steps, **settings))
        run.record(parameters=sum(parameter.numel() for parameter in student.parameters()))
        with evaluating(model):
            return self.task().evaluate(lambda batch: model(batch["pixel_values"]), split=run.split)

    def reference(self, run: Run) -> dict[str, float]:
        """The student without a teacher, fine-tuned; `teacher_accuracy` is the supervised teacher's on the images themselves."""
        teacher = self.supervised(run)
        found = self.task().evaluate(lambda batch: teacher(batch["pixel_values"]), split=run.split)["accuracy"]
        return self.tuned(run, self.new_student(run)) | {"teacher_accuracy": found}


REACHES = {"accuracy": (0.18, 0.6), "teacher_accuracy": (0.62, 0.85)}  # an untaught student stays below its teacher
PATCHES = PatchBed(expects=REACHES, name="mnist 12x12 in 16 patches, 500 labels")
UNIT_PATCHES = PatchBed(
    expects={"accuracy": (0.78, 0.92), "teacher_accuracy": (0.9, 0.98)},
    name="mnist 12x12 in 16 patches, 500 labels, unit variance at first",
    unit_start=True,
)
NEGATIVES = PatchBed(expects=REACHES, name="mnist 12x12 negatives in 16 patches, 500 labels", negatives=True)
