"""Image classification on scikit-learn's digits, CIFAR, MNIST or any data set with an image and a label column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.images import channel_statistics, decode, resized_regions, shift_and_flip
from limbeck.datasets.imbalance import long_tailed
from limbeck.datasets.labels import class_labels
from limbeck.datasets.load import column, load_splits
from limbeck.datasets.split import holdout
from limbeck.errors import DataError, UsageError
from limbeck.tasks.base import Classification, checked_examples, subset

# data set -> (crop padding, flip): what may change without changing the class
AUGMENTATION = {"digits": (1, False), "mnist": (2, False), "cifar10": (4, True), "cifar100": (4, True)}


class ImageClassification(Classification):
    """Images in memory as uint8; normalized, and augmented where asked, one whole batch at a time.

    dataset: "digits" (scikit-learn's 1797 grey 8x8 digits, no download; a fixed stratified 70/10/20 % split), or a name
        or folder that `limbeck.datasets.load` finds: "cifar10", "cifar100", "mnist", one's own.
    config, splits: see `limbeck.datasets.load`. image, label: column names, where they are not clear.
    holdout: the share of train, stratified and fixed, that becomes validation where the data set has none.
    size: resize all images to size x size. channels: 1 or 3. By default both are the images' own.
    mean, std: per channel, of pixels in 0..1. By default those of the train split.
    crop: zero padding around random crops, flip: mirror half of the images; used when batches are augmented. The
        defaults are 4 and true for CIFAR, 1 and false for digits, 2 and false for MNIST, 0 and false for anything else.
    region: smallest and largest share of the area of a random region that is resized to the whole, before cropping and flipping, such as
        (0.25, 1.0); None: none.
    examples: how many examples of a split to keep at most, evenly spaced over the file, as {"train": 5000}; the others are
        never decoded. Statistics are then those of the examples that are kept.
    imbalance: above 1, the train split is thinned to a long tail, see `limbeck.datasets.imbalance.long_tailed`.
    only: classes that are kept, as numbered in the data, such as [5, 6, 7, 8, 9]; they are numbered anew, in this order, and `examples`
        counts theirs. By default all.
    groups: classes that are taken as one, [[0, 2, 4], [1, 3]] say; every class is named once.

    Batches: pixel_values float32 (B, C, H, W), labels int64 (B,), index. Raises DataError for data that do not fit.
    """

    name = "image_classification"
    inputs = ("pixel_values",)

    def __init__(
        self,
        dataset: str = "digits",
        *,
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        image: str | None = None,
        label: str | None = None,
        holdout: float = 0.1,
        size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: int | None = None,
        flip: bool | None = None,
        examples: Mapping[str, int] | None = None,
        imbalance: float = 1.0,
        groups: Sequence[Sequence[int]] = (),
        region: Sequence[float] | None = None,
        only: Sequence[int] = (),
    ):
        self.dataset = dataset
        preset = AUGMENTATION.get(Path(dataset).name, (0, False))
        self.crop = preset[0] if crop is None else crop
        self.flip = preset[1] if flip is None else flip
        if not isinstance(self.crop, int) or self.crop < 0:
            raise UsageError(f"crop must be a whole number of pixels, 0 or more, not {crop!r}")
        if channels not in (None, 1, 3):
            raise UsageError(f"channels must be 1 or 3, not {channels!r}")
        if (mean is None) != (std is None):
            raise UsageError("give both mean and std, or neither")
        self.region = None if region is None else tuple(region)
        if region is not None and (len(self.region) != 2 or not 0 < self.region[0] <= self.region[1] <= 1):
            raise UsageError(f"region={region!r} must be two shares of the area, above 0, rising, at most 1")
        self.examples = checked_examples(examples)
        self.augmentation = f"crop {self.crop}, flip {str(bool(self.flip)).lower()}"
        if self.region:
            self.augmentation += f", region {self.region[0]} to {self.region[1]}"
        self._only = tuple(only)
        self._scale = 255.0
        if dataset == "digits":
            self._load_digits()
        else:
            self._load(config, splits, image, label, holdout, size, channels)
        if imbalance != 1:
            images, labels = self._data["train"]
            kept = long_tailed(labels, imbalance)
            self._data["train"] = (images[kept], labels[kept])
        if groups:
            self._group(groups)
        train = self._data["train"][0]
        self.channels, self.height, self.width = train.shape[1:]
        self.mean, self.std = channel_statistics(train, self._scale) if mean is None else (tuple(mean), tuple(std))
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise UsageError(f"mean and std need {self.channels} values, std above 0, not {mean!r} and {std!r}")

    def _group(self, groups: Sequence[Sequence[int]]) -> None:
        """Classes become groups of classes."""
        if len(groups) < 2 or sorted(label for group in groups for label in group) != list(range(len(self.classes))):
            raise UsageError(
                f"groups={groups!r}: two or more lists that name each of the classes 0 to {len(self.classes) - 1} once"
            )
        number = torch.tensor(
            [next(i for i, g in enumerate(groups) if label in g) for label in range(len(self.classes))]
        )
        self._data = {split: (images, number[labels]) for split, (images, labels) in self._data.items()}
        self.classes = tuple(" ".join(self.classes[label] for label in group) for group in groups)

    def _kept(self, names: tuple[str, ...], labels: Tensor) -> tuple[tuple[str, ...], Tensor]:
        """The classes that are kept and labels numbered by them, -1 where a class is left out."""
        if not self._only:
            return names, labels
        if (
            len(self._only) < 2
            or len(set(self._only)) < len(self._only)
            or not set(self._only) <= set(range(len(names)))
        ):
            raise UsageError(f"only={self._only!r}: two or more of the classes 0 to {len(names) - 1}, each once")
        number = torch.full((len(names),), -1, dtype=torch.long)
        number[list(self._only)] = torch.arange(len(self._only))
        return tuple(names[label] for label in self._only), number[labels]

    def _load_digits(self) -> None:
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8)[:, None]
        labels = torch.from_numpy(found.target).long()
        self._scale = 16.0
        self.classes = tuple(str(digit) for digit in range(10))
        rest, test = holdout(labels.tolist(), 0.2, "digits test")
        kept, validation = holdout(labels[rest].tolist(), 0.125, "digits validation")
        rest = torch.tensor(rest)
        positions = {"train": rest[kept], "validation": rest[validation], "test": torch.tensor(test)}
        self._data = {}
        self.classes, labels = self._kept(self.classes, labels)
        for split, at in positions.items():
            at = at[labels[at] >= 0]
            at = at[subset(len(at), self.examples.get(split))]
            self._data[split] = (images[at], labels[at])

    def _load(self, config, splits, image, label, share, size, channels) -> None:
        found = load_splits(self.dataset, config, splits)
        usual = ("fine_label",) if Path(self.dataset).name == "cifar100" else ("label", "labels")
        image = column(found["train"], self.dataset, "image", image, ("image", "img"), "Image")
        label = column(found["train"], self.dataset, "label", label, usual, "ClassLabel")
        self.classes, labels = class_labels(found, self.dataset, label)
        sources = {split: (split, torch.arange(len(rows))) for split, rows in found.items()}
        if "validation" not in found:
            kept, held = holdout(labels["train"].tolist(), share, "validation")
            sources |= {"train": ("train", torch.tensor(kept)), "validation": ("train", torch.tensor(held))}
        names = self.classes
        for split in found:
            self.classes, labels[split] = self._kept(names, labels[split])
        self._data = {}
        for split, (source, rows) in sources.items():
            rows = rows[labels[source][rows] >= 0]
            rows = rows[subset(len(rows), self.examples.get(split))]
            chosen = found[source] if len(rows) == len(found[source]) else found[source].select(rows.tolist())
            pixels = decode(chosen, image, f"split {source!r} of data set {self.dataset!r}", size, channels)
            self._data[split] = (pixels, labels[source][rows])
            channels, expected = pixels.shape[1], self._data["train"][0].shape
            if pixels.shape[1:] != expected[1:]:
                raise DataError(
                    f"data set {self.dataset!r}: images of split {split!r} are {pixels.shape[3]}x{pixels.shape[2]} "
                    f"pixels, those of train {expected[3]}x{expected[2]}. Set size to resize them all"
                )

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._data[split][1])

    def class_counts(self, split: str = "train") -> tuple[int, ...]:
        """How many examples of each class a split has, in the order of `classes`."""
        self._check_split(split)
        return tuple(self._data[split][1].bincount(minlength=len(self.classes)).tolist())

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        images, labels = self._data[split]
        images = images[index]
        if augment is not None and self.region:
            images = resized_regions(images, self.region, augment)
        if augment is not None and (self.crop or self.flip):
            images = shift_and_flip(images, self.crop, self.flip, augment)
        mean = torch.tensor(self.mean).reshape(-1, 1, 1)
        std = torch.tensor(self.std).reshape(-1, 1, 1)
        return {"pixel_values": images.float().div_(self._scale).sub_(mean).div_(std), "labels": labels[index]}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "mean": self.mean, "std": self.std, "scale": self._scale, "classes": self.classes}
        for split in self.splits():
            yield from (split, *self._data[split])
