"""Transfer: nets of other tasks, a few labels of a new one, and many images of it without labels.

sources   digits 0-4 upright, inverted, upside down; objects (CIFAR-10 in grey)     one trained net each
target    digits 5-9: 10 labels each and 2000 images without a label
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.files import digest
from limbeck.measure.latency import evaluating
from limbeck.models import resnet
from limbeck.objectives import CrossEntropy
from limbeck.signals import call, capture, first_tensor
from limbeck.tasks.base import SPLITS
from limbeck.tasks.custom import CustomTask
from limbeck.tasks.images import ImageClassification
from limbeck.training import Procedure, Supervised, TrainingConfig

if TYPE_CHECKING:
    from limbeck.experiments.run import Run

SOURCES = ("digits", "inverted", "turned", "objects")
FEATURE = "pool"  # the signal that a net's classifier reads


@functools.lru_cache(maxsize=4)
def _images(dataset: str, size: int, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Grey normalized images (N, 1, S, S) and labels of every split; `count` of train and of test, a quarter of them of validation."""
    counts = {"train": count, "validation": count // 4, "test": count}
    task = ImageClassification(dataset, size=size, channels=1, examples=counts)
    out = {}
    for split in SPLITS:
        batches = list(task.batches(split, 1000))
        out[split] = tuple(torch.cat([batch[key] for batch in batches]) for key in ("pixel_values", "labels"))
    return out


def _source(name: str, size: int, images: int, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    splits = _images("cifar10" if name == "objects" else "mnist", size, images)
    out = {}
    for split, (images, labels) in splits.items():
        kept = torch.ones_like(labels, dtype=torch.bool) if name == "objects" else labels < 5
        images, labels = images[kept][:count], labels[kept][:count]
        images = -images if name == "inverted" else torch.rot90(images, 2, (2, 3)) if name == "turned" else images
        out[split] = (images.contiguous(), labels)
    return out


@dataclass(frozen=True)
class TransferBed(Bed):
    """See the module. labelled: per class of the target, each repeated `repeats` times in an epoch so that batches hold some;
    unlabelled: images with the label -100. source_train: images of each source, out of
    the first `images` of its data set. Students are residual nets of `width`, sources of
    `source_width`.

        bed.source(run, name)       a source's net; bed.student(run, classes) a fresh student
        bed.fit(run, procedure), bed.measure(run, model), bed.labelled_examples(), bed.labelled_task()
    """

    name: str = "digits 5-9 from other tasks"
    size: int = 14
    labelled: int = 10
    repeats: int = 10
    unlabelled: int = 2000
    source_train: int = 3000
    images: int = 8000
    width: int = 4
    source_width: int = 8
    epochs: int = 8
    learning_rate: float = 0.05
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"accuracy": (0.5, 0.85)}, compare=False)

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings(), "version": 1})

    def collections(self) -> tuple[str, ...]:
        return ("mnist", "cifar10")

    def _target(self) -> dict[str, tuple[Tensor, Tensor]]:
        images = _images("mnist", self.size, self.images)
        return {split: (x[y >= 5], y[y >= 5] - 5) for split, (x, y) in images.items()}

    def labelled_examples(self) -> tuple[Tensor, Tensor]:
        """The labelled images of the target and their labels."""
        images, labels = self._target()["train"]
        at = torch.cat([(labels == label).nonzero().flatten()[: self.labelled] for label in range(5)])
        return images[at], labels[at]

    def task(self) -> CustomTask:
        return _target_task(self)

    def labelled_task(self, repeats: int = 1) -> CustomTask:
        """The target with its labelled images alone to train on, each so often in an epoch."""
        few = tuple(torch.cat([part] * repeats) for part in self.labelled_examples())
        return CustomTask(self._target() | {"train": few}, classes=5, name="few digits 5-9")

    def source_task(self, name: str) -> CustomTask:
        """A source's own task."""
        return CustomTask(
            _source(name, self.size, self.images, self.source_train), classes=10 if name == "objects" else 5, name=name
        )

    def config(self, **changes: Any) -> TrainingConfig:
        settings = {"epochs": self.epochs, "batch_size": 64, "optimizer": "sgd", "learning_rate": self.learning_rate}
        settings |= {"weight_decay": 5e-4, "warmup": 0.1, "precision": "bf16", "channels_last": True}
        if changes.get("steps") is not None:
            settings["epochs"] = None
        return TrainingConfig(**(settings | changes))

    def source(self, run: Run, name: str, width: int | None = None) -> nn.Module:
        """A net trained on a source's labels, shared by all arms; width: another one than the sources', such as the student's."""
        task, width = self.source_task(name), width or self.source_width
        config = self.config(epochs=self.epochs)
        key = {"kind": "source", "version": 1, "data": task.digest(), "width": width, "training": config.to_json()}

        def train(model: nn.Module) -> None:
            run.train(Supervised(model, CrossEntropy()), task, config, seed=0, counted=False)

        return run.trained(key, lambda: resnet(8, len(task.classes), 1, width), train)

    def features(self, model: nn.Module) -> Tensor:
        """What a source's classifier reads of the labelled target images (N, D)."""
        images, _ = self.labelled_examples()
        with evaluating(model), torch.no_grad():
            return capture(model, {"pixel_values": images}, {FEATURE})[FEATURE].flatten(1)

    def student(self, run: Run) -> nn.Module:
        """A fresh student for the target's five classes."""
        return run.fresh(lambda: resnet(8, 5, 1, self.width))

    def fit(self, run: Run, procedure: Procedure, **changes: Any) -> dict[str, float]:
        """Train on labelled and unlabelled images of the target and measure the procedure's model."""
        run.train(procedure, self.task(), self.config(**changes))
        return self.measure(run, procedure.model())

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """`accuracy` and `loss` on the run's split of the target."""
        with evaluating(model):
            return self.task().evaluate(lambda batch: first_tensor(call(model, batch)), run.split)

    def reference(self, run: Run) -> dict[str, float]:
        return self.fit(run, Supervised(self.student(run), CrossEntropy()))


@functools.lru_cache(maxsize=2)
def _target_task(bed: TransferBed) -> CustomTask:
    splits = bed._target()
    images, _ = splits["train"]
    few, known = bed.labelled_examples()
    images = torch.cat([*[few] * bed.repeats, images[len(images) - bed.unlabelled :]])
    labels = torch.cat([*[known] * bed.repeats, torch.full((bed.unlabelled,), -100)])
    return CustomTask(splits | {"train": (images, labels)}, classes=5, name="digits 5-9")


DIGITS_FROM_OTHERS = TransferBed()
