"""Task: what a model is for: data splits, the metrics, the task loss and example inputs.

Every order and every augmentation is a pure function of (seed, epoch, batch number), drawn from a generator that is made
anew for each batch: nothing random is kept between batches, so a resumed run that skips batches sees the same numbers.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import DataError, UsageError, did_you_mean
from limbeck.files import canonical_json
from limbeck.measure.calibration import calibration_error
from limbeck.signals import TARGETS, first_tensor

Forward = Callable[[Mapping[str, Any]], Any]
IGNORED = -100  # a label that does not count
SPLITS = ("train", "validation", "test")


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of the key, e.g. `generator(seed, epoch, "order")`."""
    seed = int.from_bytes(hashlib.sha256(canonical_json(list(key)).encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(seed)


def subset(size: int, limit: int | None) -> Tensor:
    """Which examples a limit leaves: evenly spaced over the file, so that files sorted by class keep every class. (n,)"""
    return torch.arange(size) if limit is None or limit >= size else torch.arange(limit) * size // limit


def checked_examples(examples: Mapping[str, int] | None) -> dict[str, int]:
    """How many examples of a split to keep, by its name; UsageError for other names or counts."""
    for split, count in (examples or {}).items():
        if split not in SPLITS or isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UsageError(
                f"examples={examples!r}: must name splits ({', '.join(SPLITS)}) and whole numbers of at least 1"
            )
    return dict(examples or {})


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of -log softmax(logits)[label] over the positions whose label is not -100; 0 where there is none.

    Shapes: logits (..., classes); labels (...) of whole numbers, or (..., classes) of probabilities; weight (B,), one per
    example, turns the mean into sum w l / sum w. Computed in float32.
    """
    losses, counts = token_losses(logits, labels)
    if weight is not None:
        counts = counts * weight.float().reshape(-1, *[1] * (counts.dim() - 1))
        return (losses * counts).sum() / counts.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return losses.sum() / counts.sum().clamp_min(1)


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every position, 0 where the label is -100, and 1.0 where it counts: both of shape (...).

    Raises UsageError for labels that do not fit, or (on a CPU) that are no class of the model.
    """
    logits = logits.float()
    if labels.is_floating_point():
        if labels.shape != logits.shape:
            raise UsageError(f"labels {tuple(labels.shape)} as probabilities must match logits {tuple(logits.shape)}")
        losses = -(labels.float() * F.log_softmax(logits, -1)).sum(-1)
        return losses, torch.ones_like(losses)
    if labels.shape != logits.shape[:-1]:
        raise UsageError(f"labels {tuple(labels.shape)} do not fit logits {tuple(logits.shape)}: one label per row")
    highest = int(labels.max()) if labels.numel() and labels.device.type == "cpu" else -1
    if highest >= logits.shape[-1]:
        raise UsageError(
            f"label {highest} is no class of a model with {logits.shape[-1]} outputs: give the model as many classes as the task "
            "has (the recipe's field `classes` for the models of limbeck.models)"
        )
    losses = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.reshape(labels.shape), (labels != IGNORED).float()


class Task:
    """Base of every task. A subclass gives `size`, `_examples`, `_content` and `evaluate`, and the attributes below."""

    name: str = ""
    dataset: str = ""  # where the data come from, for the report
    metric: str = ""  # the main metric; `better` is "higher" or "lower"
    better: str = "higher"
    classes: tuple[str, ...] | None = None
    inputs: tuple[str, ...] = ()  # batch keys that are model inputs, in positional order
    augmentation: str = "none"  # names the augmentation and its settings; part of cache keys

    _digest: str | None = None
    _given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __new__(cls, *args: Any, **settings: Any) -> Task:
        made = super().__new__(cls)
        made._given = (args, settings)
        return made

    def describe(self) -> dict[str, Any]:
        """What a recipe says to get this task: its class and the settings that were given, as plain JSON."""
        made = type(self)
        arguments = inspect.signature(made.__init__).bind(self, *self._given[0], **self._given[1]).arguments
        name = made.__name__ if made.__module__.startswith("limbeck.") else f"{made.__module__}:{made.__qualname__}"
        return {"class": name, **{key: _plain(value) for key, value in list(arguments.items())[1:]}}

    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def size(self, split: str) -> int:
        """How many examples a split has."""
        raise NotImplementedError

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        """The batch of the examples at `index` (B,), augmented with draws from `augment` unless it is None."""
        raise NotImplementedError

    def _content(self) -> Iterator[Any]:
        """All that the numbers depend on, as JSON values and tensors: preprocessing, then the data of every split."""
        raise NotImplementedError

    def _check_split(self, split: str) -> None:
        if split not in self.splits():
            raise DataError(
                f"task {self.name!r} on {self.dataset!r} has no split {split!r}. {did_you_mean(split, self.splits())}"
            )

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        augment: bool = False,
        limit: int | None = None,
        skip: int = 0,
    ) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch, the last one smaller where the split does not divide evenly.

        seed None: file order. Otherwise order and augmentation are a pure function of (seed, epoch, batch number).
        `limit` uses only that many examples, the same in every epoch and for every seed; `skip` leaves out the first
        batches without computing them. `augment` needs a seed; an augmented batch carries its `epoch`, a whole number.
        """
        self._check_split(split)
        for field, value, least in (("batch_size", batch_size, 1), ("limit", limit, 1), ("skip", skip, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"{field} must be a whole number of at least {least}, not {value!r}")
        if augment and seed is None:
            raise UsageError("augmented batches need a seed: their numbers are a function of it")
        return self._iterate(split, batch_size, seed, epoch, augment, limit, skip)

    def _iterate(self, split, batch_size, seed, epoch, augment, limit, skip) -> Iterator[dict[str, Tensor]]:
        order = subset(self.size(split), limit)
        if seed is not None:
            order = order[torch.randperm(len(order), generator=generator(seed, epoch, "order"))]
        for number in range(skip, -(-len(order) // batch_size)):
            index = order[number * batch_size : (number + 1) * batch_size]
            draws = generator(seed, epoch, "augment", number) if augment else None
            batch = {**self._examples(split, index, draws), "index": index}
            yield {**batch, "epoch": epoch} if augment else batch

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The task loss: cross-entropy, mean over the positions that count (see `cross_entropy`)."""
        return cross_entropy(logits, batch["labels"], batch.get("sample_weight"))

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        """Metrics of `forward(batch) -> logits`, the main one first. The caller puts its model into eval mode."""
        raise NotImplementedError

    def example(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Example inputs, without labels: the first of the train split, repeated where it has fewer."""
        self._check_split("train")
        batch = self._examples("train", torch.arange(batch_size) % self.size("train"), None)
        return {key: value for key, value in batch.items() if key not in TARGETS}

    def digest(self) -> str:
        """Hexadecimal SHA-256 of preprocessing and data; computed once, so neither may change afterwards."""
        if self._digest is None:
            state = hashlib.sha256()
            for part in self._content():
                if isinstance(part, Tensor):
                    part = part.contiguous()
                    state.update(f"{part.dtype}{tuple(part.shape)}".encode())
                    state.update(part.reshape(-1).view(torch.uint8).numpy() if part.numel() else b"")
                else:
                    state.update(canonical_json(part).encode())
            self._digest = state.hexdigest()
        return self._digest

    @staticmethod
    def from_data(splits: Mapping[str, Any], **settings: Any) -> Task:
        """A task from one's own data and metric; see `limbeck.tasks.custom.CustomTask`."""
        from limbeck.tasks.custom import CustomTask

        return CustomTask(splits, **settings)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else {"object": type(value).__name__}


class Classification(Task):
    """What image and text classification share: accuracy, loss and 15-bin calibration error."""

    metric = "accuracy"
    better = "higher"

    def predictions(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, classes) in float32 and labels (N,) of a split in file order, on the CPU."""
        logits, labels = [], []
        with torch.no_grad():
            for batch in self.batches(split, batch_size, limit=limit):
                output = first_tensor(forward(batch)).detach().float().cpu()
                if self.classes is not None and output.shape != (len(batch["labels"]), len(self.classes)):
                    raise UsageError(
                        f"the model returned {tuple(output.shape)} for {len(batch['labels'])} examples of "
                        f"{self.dataset!r}, which has {len(self.classes)} classes: build it with "
                        f"classes={len(self.classes)}"
                    )
                logits.append(output)
                labels.append(batch["labels"])
        return torch.cat(logits), torch.cat(labels)

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        logits, labels = self.predictions(forward, split, batch_size, limit)
        return {
            "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
            "loss": cross_entropy(logits, labels).item(),
            "calibration_error": calibration_error(logits, labels),
        }
