"""Image classification: a wide residual network teaches a narrow one, on digits, MNIST or CIFAR-10 made small.

The student sees a few thousand images; the teacher was trained on more of them, so it knows what the student cannot learn
from its own labels. Images are shrunk and the test split is thinned, so that a student trains in seconds on one core.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from limbeck import models
from limbeck.beds.taught import TaughtBed
from limbeck.errors import UsageError
from limbeck.experiments.run import Run
from limbeck.measure.latency import evaluating
from limbeck.objectives import CrossEntropy, Objective
from limbeck.signals import LOGITS, capture
from limbeck.tasks import ImageClassification
from limbeck.training import Distil, SharpnessAware, TrainingConfig
from limbeck.training.procedures import describe

VERSION = 1  # raise it when the way teachers are trained changes


@dataclass(frozen=True)
class Network:
    """A CIFAR ResNet: depth 6n+2 and the width of its first stage."""

    depth: int
    width: int

    def make(self, channels: int, classes: int = 10) -> nn.Module:
        return models.resnet(self.depth, classes, channels, self.width)


@dataclass(frozen=True, kw_only=True)
class ImageBed(TaughtBed):
    """Images, a student and a teacher.

    dataset, size, channels, mean, std, crop, region: see `ImageClassification`. train, validation, test: how many examples of each split, evenly
    spaced over it; None: all. teacher_train: how many the teacher is trained on. student, teacher: `Network`.
    training, teacher_training: `TrainingConfig`. imbalance: above 1, class sizes of every train split fall exponentially, the largest
    that many times the smallest; measurements then name the rarest and the most frequent third of the classes too. groups: classes
    that are taken as one, only: classes that are kept, see `ImageClassification`.

    What an arm needs:

        bed.distil(run, SoftTargets(4) + CrossEntropy())    train a student with an objective and measure it
        bed.fit(run, procedure)                             the same for a procedure of one's own
        bed.new_student(run), bed.trained_teacher(run), bed.measure(run, model), bed.task(), bed.config(epochs=5)
    """

    dataset: str
    name: str
    student: Network
    teacher: Network
    training: TrainingConfig
    teacher_training: TrainingConfig
    size: int | None = None
    channels: int = 3
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop: int | None = None
    train: int | None = None
    teacher_train: int | None = None
    validation: int | None = None
    test: int | None = None
    imbalance: float = 1.0
    groups: tuple[tuple[int, ...], ...] = ()
    region: tuple[float, float] | None = None
    only: tuple[int, ...] = ()
    expects: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def task(self, train: int | None = None) -> ImageClassification:
        """The data, loaded once per process. train: another number of training examples than the student's."""
        counts = {"train": train or self.train, "validation": self.validation, "test": self.test}
        counts = tuple((split, count) for split, count in counts.items() if count)
        settings = (self.size, self.channels, self.mean, self.std, self.crop, counts)
        return _task(self.dataset, *settings, self.imbalance, self.groups, self.region, self.only)

    def _make(self, network: Network) -> nn.Module:
        return network.make(self.channels, len(self.groups) or len(self.only) or 10)

    def settings(self) -> dict[str, Any]:
        own = super().settings()
        for later in ("imbalance", "groups", "region", "only"):  # beds without them keep the digests they had before
            if own[later] == type(self).__dataclass_fields__[later].default:
                del own[later]
        return own

    def new_student(self, run: Run, make: Callable[[], nn.Module] | None = None) -> nn.Module:
        """A fresh student whose weights depend on the run's seed only. make: another architecture's constructor."""
        return run.fresh(make or (lambda: self._make(self.student)))

    def trained_teacher(
        self,
        run: Run,
        make: Callable[[], nn.Module] | None = None,
        architecture: Any = None,
        *,
        objective: Objective | None = None,
        seed: int = 0,
        radius: float = 0.0,
        **changes: Any,
    ) -> nn.Module:
        """The teacher, trained once and shared by everyone.

        make: another architecture's constructor; `architecture` (JSON) then names it in the store's key. objective: what it is trained
        with, None: labels alone. seed: another member of an ensemble. radius: above 0, of sharpness-aware minimization. changes: of the
        teacher's schedule.
        """
        if (make is None) != (architecture is None):
            raise UsageError("trained_teacher: give make and architecture together: the store finds the weights by it")
        config = replace(self.teacher_training, **changes)
        make = make or (lambda: self._make(self.teacher))
        return self._trained(
            run, make, architecture or asdict(self.teacher), self.teacher_train, config, objective, seed, radius
        )

    def trained_student(self, run: Run, **changes: Any) -> nn.Module:
        """The student trained with labels alone, of the run's seed: a starting point that all arms of a seed share."""
        make = functools.partial(self._make, self.student)
        return self._trained(run, make, asdict(self.student), self.train, self.config(**changes), None, run.seed)

    def _trained(
        self,
        run: Run,
        make: Callable[[], nn.Module],
        architecture: Any,
        train: int | None,
        config: TrainingConfig,
        objective: Objective | None,
        seed: int,
        radius: float = 0.0,
    ) -> nn.Module:
        """A network from the store, trained on `train` examples of the bed's data."""
        key = {
            "kind": "image teacher",
            "version": VERSION,
            "data": [self.task().digest(), self.task().augmentation, train],
            "architecture": architecture,
            "training": config.to_json(),
        }
        if objective is not None:
            key["objective"] = describe(objective)
        if seed:
            key["seed"] = seed
        if radius:
            key["radius"] = radius

        def fit(model: nn.Module) -> None:
            given = (model, None, objective or CrossEntropy())
            procedure = SharpnessAware(*given, radius) if radius else Distil(*given)
            run.train(procedure, self.task(train), config, seed=seed, counted=False)

        return run.trained(key, make, fit)

    def measure(
        self,
        run: Run,
        model: nn.Module,
        signal: str = LOGITS,
        change: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> dict[str, float]:
        """`accuracy`, `loss` (negative log-likelihood) and `calibration_error` (15 bins) on the run's split; of a long-tailed bed also
        `rare_accuracy` and `frequent_accuracy`, the mean of the rarest and of the most frequent third of the classes.

        signal: what to measure in place of the model's answer, such as one of several heads. change: what is done to every batch before,
        such as `limbeck.datasets.augment.Translated`.
        """

        def answer(batch: Mapping[str, Any]) -> Tensor:
            return capture(model, change(batch) if change else batch, {signal})[signal]

        with evaluating(model):
            found = self.task().evaluate(answer, split=run.split)
            if self.imbalance == 1:
                return found
            logits, labels = self.task().predictions(answer, run.split)
        right = logits.argmax(-1) == labels
        by_class = [right[labels == label].double().mean().item() for label in range(logits.shape[1])]
        third = len(by_class) // 3
        rare, frequent = (sum(part) / third for part in (by_class[-third:], by_class[:third]))
        return found | {"rare_accuracy": rare, "frequent_accuracy": frequent}

    def reference(self, run: Run) -> dict[str, float]:
        """The student trained with labels alone; `teacher_accuracy` is the teacher's."""
        teacher = self.measure(run, self.trained_teacher(run))["accuracy"]
        return self.distil(run, CrossEntropy()) | {"teacher_accuracy": teacher}


@functools.lru_cache(maxsize=8)
def _task(
    dataset: str,
    size: int | None,
    channels: int,
    mean: Any,
    std: Any,
    crop: int | None,
    counts: tuple,
    imbalance: float,
    groups: tuple[tuple[int, ...], ...],
    region: tuple[float, float] | None,
    only: tuple[int, ...],
) -> ImageClassification:
    settings = {
        "size": size,
        "channels": channels,
        "mean": mean,
        "std": std,
        "crop": crop,
        "region": region,
        "only": only,
    }
    return ImageClassification(dataset, examples=dict(counts), imbalance=imbalance, groups=groups, **settings)


def _schedule(epochs: float, batch_size: int = 64, precision: str = "bf16", **settings: Any) -> TrainingConfig:
    return TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer="sgd",
        weight_decay=5e-4,
        decay_norms_and_biases=False,
        schedule="cosine",
        warmup=0.1,
        precision=precision,
        channels_last=True,
        **{"learning_rate": 0.1, **settings},
    )


CIFAR10 = ImageBed(
    dataset="cifar10",
    name="cifar10 16x16",
    student=Network(8, 8),
    teacher=Network(8, 24),
    training=_schedule(15),
    teacher_training=_schedule(10, 128),
    size=16,
    mean=(0.491, 0.482, 0.447),
    std=(0.235, 0.232, 0.250),
    crop=2,
    train=4000,
    teacher_train=20000,
    validation=2000,
    test=5000,
    expects={"accuracy": (0.42, 0.65), "teacher_accuracy": (0.62, 0.80)},
)
CIFAR10_FEW = replace(
    CIFAR10,
    name="cifar10 16x16, 1000 examples",
    train=1000,
    training=_schedule(40),
    expects={"accuracy": (0.28, 0.50), "teacher_accuracy": (0.62, 0.80)},
)
MNIST = ImageBed(
    dataset="mnist",
    name="mnist 14x14",
    student=Network(8, 4),
    teacher=Network(8, 16),
    training=_schedule(20, 32),
    teacher_training=_schedule(6, 64),
    size=14,
    channels=1,
    mean=(0.131,),
    std=(0.28,),
    crop=1,
    train=1000,
    teacher_train=5000,
    validation=2000,
    test=5000,
    expects={"accuracy": (0.88, 0.98), "teacher_accuracy": (0.95, 1.0)},
)
MNIST_FEW = replace(
    MNIST,
    name="mnist 14x14, 500 examples",
    train=500,
    expects={"accuracy": (0.82, 0.95), "teacher_accuracy": (0.95, 1.0)},
)
MNIST_TAIL = replace(
    MNIST,
    name="mnist 14x14, imbalance 50",
    train=5000,
    teacher_train=None,
    imbalance=50.0,
    training=_schedule(15, 32),
    teacher_training=_schedule(15, 32),
    expects={"accuracy": (0.6, 0.88), "teacher_accuracy": (0.82, 0.97)},
)
MNIST_REGIONS = replace(
    MNIST_FEW,
    name="mnist 14x14, 500 examples, random regions",
    region=(0.2, 1.0),
    expects={"accuracy": (0.74, 0.92), "teacher_accuracy": (0.93, 1.0)},
)
DIGITS = ImageBed(
    dataset="digits",
    name="digits 8x8",
    student=Network(8, 4),
    teacher=Network(8, 16),
    training=_schedule(20, 32),
    teacher_training=_schedule(20, 32),
    channels=1,
    train=300,
    expects={"accuracy": (0.85, 1.0), "teacher_accuracy": (0.93, 1.0)},
)
