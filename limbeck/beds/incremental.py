"""Class-incremental learning: the classes of an image data set arrive in phases; a small memory keeps examples of old ones.

    phase 1: classes a b       phase 2: c d + memory(a b)       phase 3: e f + memory(a b c d)       ...
    after each phase: accuracy over all classes seen so far

Labels are numbered in the order of arrival, so the old classes are 0..old-1 and the new ones old..seen-1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.datasets.herding import herding
from limbeck.datasets.images import channel_statistics, shift_and_flip
from limbeck.errors import UsageError
from limbeck.experiments.store import Store
from limbeck.files import digest
from limbeck.models.cnn import cnn
from limbeck.tasks.base import subset
from limbeck.tasks.custom import CustomTask
from limbeck.tasks.images import ImageClassification
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


def _augmented(batch: dict[str, Any], draws: torch.Generator) -> dict[str, Any]:
    return {**batch, "pixel_values": shift_and_flip(batch["pixel_values"], 2, True, draws)}


_AUGMENTATION = {"augment": _augmented, "augmentation": "crop 2, flip"}
_FAST = {"precision": "bf16", "channels_last": True}
Examples = tuple[Tensor, Tensor]  # inputs (N, ...) and labels (N,) in the order of arrival


@dataclass(frozen=True)
class Phase:
    """What a learner is given: which phase it is (from 0), how many classes are old and how many are seen with it, the task
    (train: the new classes and the memory; validation and test: all classes seen) and the memory (inputs, labels) or None."""

    number: int
    old: int
    seen: int
    task: CustomTask
    memory: Examples | None


@dataclass(frozen=True)
class Learned:
    """What a learner answers after a phase: scores(batch) -> (B, seen) and, where the memory is chosen by herding,
    features(inputs) -> (B, D)."""

    scores: Callable[[Mapping[str, Any]], Tensor]
    features: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Incremental(Bed):
    """`phases` phases of equally many classes, in an order drawn from the seed; `memory` examples of each old class are kept
    (herding). `train`, `held`, `test`: examples per class of each split. Images are resized to size x size."""

    dataset: str = "cifar10"
    size: int = 16
    phases: int = 5
    train: int = 250
    held: int = 200
    test: int = 500
    memory: int = 20
    epochs: int = 20
    name: ClassVar[str] = "incremental"
    expects: ClassVar[dict[str, tuple[float, float]]] = {"accuracy": (0.38, 0.58)}

    def __post_init__(self) -> None:
        if not self.phases >= 2 or 10 % self.phases:
            raise UsageError(f"phases={self.phases}: must divide the 10 classes, as 2, 5 or 10")
        if not 1 <= self.memory <= self.train:
            raise UsageError(f"memory={self.memory}: must lie between 1 and train={self.train} examples per class")

    def digest(self) -> str:
        return digest(
            {"bed": self.name, "version": 1, **asdict(self), "pixels": _pixels_digest(self.dataset, self.size)}
        )

    @functools.cached_property
    def images(self) -> dict[str, Examples]:
        """Pixels (N, C, H, W) in uint8 and labels (N,), the first `train`, `held`, `test` of each class, class by class."""
        pixels, out = pixels_of(self.dataset, self.size), {}
        for split, count in (("train", self.train), ("validation", self.held), ("test", self.test)):
            labels = pixels[f"{split}.labels"]
            kept = torch.cat([(labels == label).nonzero().flatten()[:count] for label in range(10)])
            out[split] = (pixels[f"{split}.pixels"][kept], labels[kept])
        return out

    @functools.cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel, (C, 1, 1) both, of the pixels of the train split in 0..1."""
        mean, deviation = channel_statistics(self.images["train"][0])
        return torch.tensor(mean).reshape(-1, 1, 1), torch.tensor(deviation).reshape(-1, 1, 1)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels as the network sees them: float32, normalized."""
        mean, deviation = self.statistics
        return (pixels.float() / 255 - mean) / deviation

    @property
    def classes_per_phase(self) -> int:
        return 10 // self.phases

    def order(self, seed: int) -> list[int]:
        """The data set's classes in the order of arrival."""
        return torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()

    def examples(
        self, split: str, seed: int, low: int, high: int, source: Mapping[str, Examples] | None = None
    ) -> Examples:
        """The examples of the classes that arrive as low..high-1, relabelled. `source`: other inputs for the same labels."""
        inputs, labels = (source or self.images)[split]
        rank = torch.tensor(self.order(seed)).argsort()[labels]
        kept = (rank >= low) & (rank < high)
        return inputs[kept], rank[kept]

    def config(self, phase: int = 0, **settings: Any) -> TrainingConfig:
        """The schedule of one phase: SGD with momentum, cosine; weight decay divided by the phase's number."""
        usual = {"epochs": self.epochs, "batch_size": 50, "optimizer": "sgd", "learning_rate": 0.05}
        return TrainingConfig(**{**_FAST, **usual, "weight_decay": 5e-4 / (phase + 1), **settings})

    def network(self, classes: int, bias: bool = True) -> nn.Module:
        """The small CNN of this bed (24,000 parameters)."""
        return cnn((16, 32, 64), classes=classes, channels=self.images["train"][0].shape[1], bias=bias)

    def task(
        self,
        seed: int,
        old: int,
        seen: int,
        memory: Examples | None = None,
        source: Mapping[str, Examples] | None = None,
    ) -> CustomTask:
        """Train: the classes old..seen-1 and the memory. Validation and test: the classes 0..seen-1."""
        made = {"train": self.examples("train", seed, old, seen, source)}
        if memory is not None:
            made["train"] = tuple(torch.cat(pair) for pair in zip(made["train"], memory))
        made |= {split: self.examples(split, seed, 0, seen, source) for split in ("validation", "test")}
        if source is None:
            made = {split: (self.prepare(inputs), labels) for split, (inputs, labels) in made.items()}
        version = f"{self.digest()} {seed} {old} {seen} {source is None}"
        return CustomTask(
            made, classes=seen, name=self.name, version=version, **(_AUGMENTATION if source is None else {})
        )

    def protocol(
        self,
        run: Run,
        learn: Callable[[Phase], Learned],
        source: Mapping[str, Examples] | None = None,
        remember: bool = True,
    ) -> dict[str, float]:
        """Go through all phases and measure on `run.split` after each.

        learn: trains on a phase's task and answers how to classify; it keeps its own model between phases. source: other
        inputs than the images, such as cached features. remember: whether there is a memory.
        Returns average_accuracy (mean over the phases of the accuracy over all classes seen), final_accuracy, and, at the end,
        old_accuracy and new_accuracy (on the classes before and of the last phase) and old_taken_for_new, the share of
        examples of old classes that are taken for a class of the last phase.
        """
        memory, reached, measured = None, [], {}
        for number in range(self.phases):
            old, seen = number * self.classes_per_phase, (number + 1) * self.classes_per_phase
            task = self.task(run.seed, old, seen, memory, source)
            learned = learn(Phase(number, old, seen, task, memory))
            measured = _measure(task, run.split, learned, old)
            reached.append(measured["accuracy"])
            if remember and number + 1 < self.phases:
                memory = self._remembered(run.seed, memory, old, seen, learned, source)
        rest = {name: measured[name] for name in ("old_accuracy", "new_accuracy", "old_taken_for_new")}
        return {"average_accuracy": sum(reached) / len(reached), "final_accuracy": reached[-1], **rest}

    def _remembered(self, seed, memory, old, seen, learned, source) -> Examples:
        inputs, labels = self.examples("train", seed, old, seen, source)
        kept = []
        for label in range(old, seen):
            at = (labels == label).nonzero().flatten()
            shown = self.prepare(inputs[at]) if source is None else inputs[at]
            with torch.no_grad():
                features = learned.features(shown) if learned.features is not None else shown.flatten(1)
            kept.append(at[herding(features, self.memory)])
        fresh = (inputs[torch.cat(kept)], labels[torch.cat(kept)])
        return fresh if memory is None else tuple(torch.cat(pair) for pair in zip(memory, fresh))

    def reference(self, run: Run) -> dict[str, float]:
        """All classes at once: what the small network reaches without phases."""
        task, model = self.task(run.seed, 0, 10), self.network(10)
        run.train(Supervised(model, task), task, self.config())
        return {"accuracy": task.evaluate(lambda batch: model(batch["pixel_values"]), run.split)["accuracy"]}

    def encoder(self, run: Run, dataset: str = "cifar100", width: int = 32, epochs: int = 5) -> nn.Module:
        """A CNN trained on another data set than the bed's, frozen (trained once, shared). `encode` gives its features."""
        pixels = _pixels_digest(dataset, self.size)
        key = {
            "bed": "incremental encoder",
            "version": 1,
            "seed": 0,
            "pixels": pixels,
            "width": width,
            "epochs": epochs,
        }

        def make() -> nn.Module:
            found = pixels_of(dataset, self.size)
            classes, channels = int(found["train.labels"].max()) + 1, found["train.pixels"].shape[1]
            return cnn((width, 2 * width, 4 * width), layers=(1, 2, 2), classes=classes, channels=channels)

        def train(model: nn.Module) -> None:
            found = pixels_of(dataset, self.size)
            splits = {
                s: (_centred(found[f"{s}.pixels"]), found[f"{s}.labels"]) for s in ("train", "validation", "test")
            }
            task = CustomTask(splits, classes=model.fc.out_features, version=pixels, **_AUGMENTATION)
            config = TrainingConfig(
                epochs=epochs, batch_size=100, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, **_FAST
            )
            run.train(Supervised(model, task), task, config, seed=0, counted=False)

        return run.trained(key, make, train).requires_grad_(False)

    def features(self, run: Run, places: bool = False, **encoder: Any) -> dict[str, Examples]:
        """The frozen encoder's features of every split, not augmented, with their labels: a `source` for `protocol`.

        (N, D) pooled; with places=True the last map before pooling as (N, positions, D).
        """
        splits = {split: pixels for split, (pixels, _) in self.images.items()}
        found = self._encoded(run, splits, {"of": self.digest()}, encoder)
        return {s: (maps if places else maps.mean(1), self.images[s][1]) for s, maps in found.items()}

    def unlabelled(self, run: Run, count: int = 5000, places: bool = False, **encoder: Any) -> Tensor:
        """Features of `count` images that the encoder itself was trained on: what is there before the first phase."""
        dataset = encoder.get("dataset", "cifar100")
        pixels = pixels_of(dataset, self.size)["train.pixels"]
        pixels = pixels[subset(len(pixels), count)]
        own = {"of": _pixels_digest(dataset, self.size), "count": count}
        maps = self._encoded(run, {"train": pixels}, own, encoder)["train"]
        return maps if places else maps.mean(1)

    def _encoded(self, run: Run, pixels: Mapping[str, Tensor], what: Mapping[str, Any], encoder: Mapping[str, Any]):
        def compute() -> dict[str, Tensor]:
            model = self.encoder(run, **encoder)
            with torch.no_grad():
                found = {
                    s: torch.cat([model.stages(_centred(part)) for part in p.split(500)]) for s, p in pixels.items()
                }
            return {split: maps.flatten(2).transpose(1, 2).half() for split, maps in found.items()}

        key = {"bed": "incremental features", "version": 1, "size": self.size, "encoder": dict(encoder), **what}
        return {split: maps.float() for split, maps in run.tensors(key, compute).items()}


def _measure(task: CustomTask, split: str, learned: Learned, old: int) -> dict[str, float]:
    answers, labels = [], []
    with torch.no_grad():
        for batch in task.batches(split, 500):
            answers.append(learned.scores(batch).argmax(-1))
            labels.append(batch["labels"])
    answers, labels = torch.cat(answers), torch.cat(labels)
    right, known = (answers == labels).double(), labels < old
    return {
        "accuracy": float(right.mean()),
        "old_accuracy": float(right[known].mean()) if old else 1.0,
        "new_accuracy": float(right[~known].mean()),
        "old_taken_for_new": float((answers[known] >= old).double().mean()) if old else 0.0,
    }


def _centred(pixels: Tensor) -> Tensor:
    """Pixels as the encoder sees them: the same for every data set."""
    return pixels.float() / 64 - 2


@functools.cache
def pixels_of(dataset: str, size: int) -> dict[str, Tensor]:
    """All splits of an image data set as uint8 tensors "train.pixels", "train.labels", ..., decoded once and then stored."""

    def decode() -> dict[str, Tensor]:
        task = ImageClassification(dataset, size=size)
        found = {split: task._data[split] for split in task.splits()}
        return {
            f"{split}.{kind}": pair[i] for split, pair in found.items() for i, kind in enumerate(("pixels", "labels"))
        }

    return Store().tensors({"pixels": dataset, "size": size, "version": 1}, decode)


@functools.cache
def _pixels_digest(dataset: str, size: int) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(pixels_of(dataset, size).items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.numpy().tobytes())
    return state.hexdigest()
