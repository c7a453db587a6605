"""Semantic segmentation: the class of every place of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.images import channel_statistics, decode, decode_masks, shift_and_flip
from limbeck.datasets.load import column, load_splits
from limbeck.datasets.split import holdout
from limbeck.errors import DataError, UsageError
from limbeck.measure.segmentation import confusion_matrix, segmentation_metrics
from limbeck.objectives.positions import IGNORED
from limbeck.signals import first_tensor, place_logits
from limbeck.tasks.base import Forward, Task, checked_examples, cross_entropy, subset, token_losses

# data set -> names of its classes; what is numbered above them is void
CLASSES = {
    "camvid": (
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"
    ),
}  # fmt: skip
VOID = 255  # a place of no class, in masks as they are stored and in files unless said otherwise


class SemanticSegmentation(Task):
    """Images and masks in memory as uint8; a mask is an image whose pixels are class numbers.

    dataset: a name or folder that `limbeck.datasets.load` finds, with a column of images and one of masks: "camvid", one's own.
    config, splits: see there. image, mask: column names, where they are not clear.
    classes: names, in the order of the numbers that are not void; by default CamVid's, else as many as the masks of train name.
    ignored: numbers that are void: not learnt and not measured. By default those after the last of `classes`, or, where it is not
        given, 255.
    holdout: the share of train, fixed, that becomes validation where the data set has none.
    size: (height, width) that all are resized to; a mask takes the nearest class. By default the images' own.
    mean, std: per channel, of pixels in 0..1. By default those of the train split.
    crop: zero padding around random crops (void in the mask), flip: mirror half of the images; used when batches are augmented. By
        default none and true.
    examples: how many examples of a split to keep at most, evenly spaced over the file, as {"train": 200}.

    Batches: pixel_values float32 (B, 3, H, W), labels int64 (B, H, W) with -100 where the mask is void, index. A model answers with
    logits (B, classes, h, w); of another size they are resized (bilinear), as is usual, before they are compared.
    Metrics, over all places of a split at once: mean_iou (mean intersection over union of the classes that occur or are said),
    accuracy, class_accuracy, loss (see `limbeck.measure.segmentation_metrics`).

    Objectives on logits learn it through `limbeck.objectives.AtPlaces`: AtPlaces(CrossEntropy() + SoftTargets(2)).
    """

    name = "semantic_segmentation"
    metric = "mean_iou"
    inputs = ("pixel_values",)

    def __init__(
        self,
        dataset: str = "camvid",
        *,
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        image: str | None = None,
        mask: str | None = None,
        classes: Sequence[str] | None = None,
        ignored: Sequence[int] | None = None,
        holdout: float = 0.1,
        size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop: int = 0,
        flip: bool = True,
        examples: Mapping[str, int] | None = None,
    ):
        if size is not None and (
            isinstance(size, int) or len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size)
        ):
            raise UsageError(f"size={size!r} must be (height, width), two whole numbers of pixels")
        if isinstance(crop, bool) or not isinstance(crop, int) or crop < 0:
            raise UsageError(f"crop must be a whole number of pixels, 0 or more, not {crop!r}")
        if (mean is None) != (std is None):
            raise UsageError("give both mean and std, or neither")
        self.dataset, self.crop, self.flip = dataset, crop, bool(flip)
        self.augmentation = f"crop {crop}, flip {str(self.flip).lower()}"
        named = classes if classes is not None else CLASSES.get(Path(dataset).name)
        self._load(config, splits, image, mask, holdout, None if size is None else tuple(size), examples)
        self._number(named, ignored)
        train = self._data["train"][0]
        self.height, self.width = train.shape[2:]
        self.mean, self.std = channel_statistics(train) if mean is None else (tuple(mean), tuple(std))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise UsageError(f"mean and std need 3 values, std above 0, not {mean!r} and {std!r}")

    def _load(self, config, splits, image, mask, share, size, examples) -> None:
        found = load_splits(self.dataset, config, splits)
        image = column(found["train"], self.dataset, "image", image, ("image", "img", "pixel_values"), "Image")
        usual = ("label", "mask", "annotation", "labels", "segmentation")
        mask = column(found["train"], self.dataset, "mask", mask, usual, "Image")
        sources = {split: (split, torch.arange(len(rows))) for split, rows in found.items()}
        if "validation" not in found:
            kept, held = holdout(len(found["train"]), share, "validation")
            sources |= {"train": ("train", torch.tensor(kept)), "validation": ("train", torch.tensor(held))}
        self._data, counts = {}, checked_examples(examples)
        for split, (source, rows) in sources.items():
            chosen = found[source].select(rows[subset(len(rows), counts.get(split))].tolist())
            where = f"split {source!r} of data set {self.dataset!r}"
            pixels, numbers = decode(chosen, image, where, size, 3), decode_masks(chosen, mask, where, size)
            if pixels.shape[2:] != numbers.shape[1:]:
                raise DataError(
                    f"{where}: images of {pixels.shape[3]}x{pixels.shape[2]} pixels and masks of {numbers.shape[2]}x"
                    f"{numbers.shape[1]}. Set size to resize them all"
                )
            self._data[split] = (pixels, numbers)

    def _number(self, named: Sequence[str] | None, ignored: Sequence[int] | None) -> None:
        """Masks of any numbers become masks of the classes 0, 1, ... and VOID; sets `classes`."""
        if ignored is None:
            ignored = (VOID,) if named is None else range(len(named), 256)
        numbers = [number for number in range(256) if number not in ignored]
        if named is None:
            found = self._data["train"][1].unique().tolist()
            named = [str(n) for n in numbers if n <= max((f for f in found if f in numbers), default=-1)]
        self.classes = tuple(named)
        if not 2 <= len(self.classes) <= len(numbers):
            raise UsageError(
                f"data set {self.dataset!r}: {len(self.classes)} classes ({', '.join(self.classes)}) and {len(numbers)} numbers that are "
                "not void; at least two classes, with a number each"
            )
        number = torch.full((256,), -1, dtype=torch.long)
        number[[n for n in range(256) if n in ignored]] = VOID
        number[numbers[: len(self.classes)]] = torch.arange(len(self.classes))
        for split, (pixels, masks) in self._data.items():
            wrong = [n for n in masks.unique().tolist() if number[n] < 0]
            if wrong:
                raise DataError(
                    f"data set {self.dataset!r}: masks of split {split!r} have the number {wrong[0]}, which is none of the "
                    f"{len(self.classes)} classes and not void. Name it in classes, or add it to ignored"
                )
            self._data[split] = (pixels, number[masks.long()].to(torch.uint8))

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._data[split][1])

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        images, masks = (data[index] for data in self._data[split])
        if augment is not None and (self.crop or self.flip):
            # padding is 0: a mask is moved as the complement of its numbers, so that what comes in is void
            moved = shift_and_flip(torch.cat([images, 255 - masks[:, None]], 1), self.crop, self.flip, augment)
            images, masks = moved[:, :3], 255 - moved[:, 3]
        mean, std = (torch.tensor(x).reshape(-1, 1, 1) for x in (self.mean, self.std))
        labels = masks.long().masked_fill_(masks == VOID, IGNORED)
        return {"pixel_values": images.float().div_(255).sub_(mean).div_(std), "labels": labels}

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy, mean over the places that count."""
        labels = batch["labels"]
        return cross_entropy(place_logits(logits, labels.shape[1:]), labels, batch.get("sample_weight"))

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        classes, total, count = len(self.classes), 0.0, 0.0
        confusion = torch.zeros(classes, classes, dtype=torch.long)
        with torch.no_grad():
            for batch in self.batches(split, min(batch_size, 32), limit=limit):
                logits, labels = first_tensor(forward(batch)).detach().float().cpu(), batch["labels"]
                if logits.dim() != 4 or logits.shape[:2] != (len(labels), classes):
                    raise UsageError(
                        f"the model returned {tuple(logits.shape)} for {len(labels)} images of {self.dataset!r}, which has "
                        f"{classes} classes: it must give (B, {classes}, h, w)"
                    )
                logits = place_logits(logits, labels.shape[1:])
                losses, counts = token_losses(logits, labels)
                total, count = total + losses.double().sum().item(), count + counts.double().sum().item()
                confusion += confusion_matrix(logits.argmax(-1), labels, classes)
        return segmentation_metrics(confusion) | {"loss": total / max(count, 1.0)}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "mean": self.mean, "std": self.std, "classes": self.classes}
        for split in self.splits():
            yield from (split, *self._data[split])
