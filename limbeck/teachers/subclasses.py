"""A teacher that splits each of its classes in pseudo-subclasses, by where its features lie: more to teach where classes are few.

features h (B, D) --splitter--> scores (B, classes, subclasses)      p(c, s) = p(c) softmax_s(score_c / temperature)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.codecs.vector_quantization import kmeans
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.objectives import connectors as connect
from limbeck.objectives.divergences import log_probabilities
from limbeck.objectives.positions import precise
from limbeck.signals import LOGITS, Signals, capture
from limbeck.teachers.base import Around, Teacher
from limbeck.teachers.frozen import model_digest

SUBCLASSES = "subclasses"


class Projections(nn.Module):
    """Scores of subclasses as linear projections: (h - mean_c) axes_c. means (C, D), axes (C, D, S) -> (B, C, S)."""

    def __init__(self, means: Tensor, axes: Tensor):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("axes", axes)

    def forward(self, features: Tensor) -> Tensor:
        return torch.einsum("bcd,cds->bcs", features.unsqueeze(1) - self.means, self.axes)


class Clusters(nn.Module):
    """Scores of subclasses as nearness to centres: -|h - centre|^2 / (2 spread_c^2). centres (C, S, D), spread (C,) -> (B, C, S)."""

    def __init__(self, centres: Tensor, spread: Tensor):
        super().__init__()
        self.register_buffer("centres", centres)
        self.register_buffer("spread", spread)

    def forward(self, features: Tensor) -> Tensor:
        distance = (features[:, None, None] - self.centres).square().sum(-1)
        return -distance / (2 * self.spread.square()[:, None])


def class_projections(
    features: Tensor, labels: Tensor, subclasses: int, weight: Tensor | None = None, seed: int = 0
) -> Projections:
    """The principal directions of each class, brought to one scale and turned at random, as projections.

    features (N, D), labels (N,): of the training examples, every class 0..C-1 with more than `subclasses` of them. weight (C, D): of the
    teacher's classifier; the part of the features that it reads is taken out first, as it tells classes apart, not what is
    inside them. Each direction is divided by its standard deviation, so that the turn (one for all classes, from `seed`) spreads the
    variance evenly over the subclasses. Raises UsageError for too few examples or directions.

    Source: Loo et al., "Linear Projections of Teacher Embeddings for Few-Class Distillation", 2024, section 3. No authors' code is public;
    scale and turn are as the text describes them.
    """
    found = precise(features).double()
    keep = torch.eye(found.shape[1], dtype=torch.double, device=found.device)
    if weight is not None:
        span = torch.linalg.pinv(weight.double())
        keep = keep - span @ weight.double()
    turn = torch.randn(subclasses, subclasses, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    turn = torch.linalg.qr(turn).Q.to(found.device)
    means, axes = [], []
    for own in by_class(found @ keep, labels, subclasses):
        mean = own.mean(0)
        _, size, directions = torch.linalg.svd(own - mean, full_matrices=False)
        deviation = size[:subclasses] / (len(own) - 1) ** 0.5
        if len(deviation) < subclasses or not bool(deviation[-1] > 1e-9 * deviation[0]):
            raise UsageError(
                f"class_projections: a class has fewer than subclasses={subclasses} directions to split it"
            )
        means.append(mean)
        axes.append(keep @ directions[:subclasses].T / deviation @ turn)
    return Projections(torch.stack(means).float(), torch.stack(axes).float())


def class_clusters(features: Tensor, labels: Tensor, subclasses: int, starts: int = 10, seed: int = 0) -> Clusters:
    """k-means within each class: the best of `starts` runs from random examples. Shapes and errors as of `class_projections`."""
    draw = torch.Generator().manual_seed(seed)
    centres, spread = [], []
    for own in by_class(precise(features), labels, subclasses):
        runs = [kmeans(own, subclasses, 50, draw) for _ in range(starts)]
        squared = [torch.cdist(own, found).amin(1).square().mean() for found in runs]
        best = min(range(starts), key=lambda at: float(squared[at]))
        centres.append(runs[best])
        spread.append((squared[best] / own.shape[1]).sqrt().clamp_min(1e-6))
    return Clusters(torch.stack(centres), torch.stack(spread))


def by_class(features: Tensor, labels: Tensor, subclasses: int) -> list[Tensor]:
    """The features of each class. Raises UsageError for a split in less than two, or a class with too few examples."""
    if isinstance(subclasses, bool) or not isinstance(subclasses, int) or subclasses < 2:
        raise UsageError(f"subclasses={subclasses!r} must be a whole number of at least 2")
    parts = [features[labels == label] for label in range(int(labels.max()) + 1)]
    least = min(len(part) for part in parts)
    if features.dim() != 2 or least <= subclasses:
        raise UsageError(
            f"features {tuple(features.shape)}: the smallest class has {least} examples; subclasses={subclasses} needs more than "
            "that many, as (examples, width)"
        )
    return parts


class SubclassTeacher(Around):
    """A teacher whose answers also have "subclasses": its logits over classes x subclasses (B, C * S), class after class.

    log p(c, s) = log softmax(z)_c + log softmax_s(score_c / temperature)

    A student with a `limbeck.models.subclasses.SubclassHead` learns them by `OnSignal("fc.linear", SoftTargets(temperature=1.0),
    teacher="subclasses")`; its classes are then right when their sums are.

    teacher: answers everything else. signal: its feature that the splitter reads, "fc:input" say; maps and sequences are averaged over their
    positions. splitter: a module from features (B, D) to scores (B, C, S). temperature: the paper's is chosen per data set; small
    ones make the subclasses hard. Raises UsageError for a splitter of another number of classes.
    """

    def __init__(self, teacher: Teacher, signal: str, splitter: nn.Module, temperature: float = 1.0):
        if not temperature > 0:
            raise UsageError(f"SubclassTeacher: temperature={temperature!r} must be above 0")
        self.teacher, self.signal, self.temperature = teacher, signal, temperature
        self.splitter = splitter.eval().requires_grad_(False)

    @torch.no_grad()
    def signals(self, batch: Mapping[str, Any], names: frozenset[str]) -> Signals:
        rest = frozenset(names) - {SUBCLASSES}
        if SUBCLASSES not in names:
            return self.teacher.signals(batch, rest)
        known = self.teacher.signals(batch, rest | {LOGITS, self.signal})
        scores = self.splitter(precise(connect.pool(known[self.signal], batch)))
        classes = log_probabilities(known.logits)
        if scores.shape[:2] != classes.shape:
            raise UsageError(
                f"SubclassTeacher: scores {tuple(scores.shape)} of a teacher with logits {tuple(classes.shape)}: the splitter "
                "must give (batch, classes, subclasses)"
            )
        split = (classes.unsqueeze(-1) + log_probabilities(scores, self.temperature)).flatten(1)
        return Signals({name: known[name] for name in rest} | {SUBCLASSES: split})

    def to(self, device: Any) -> None:
        super().to(device)
        self.splitter.to(device)

    def digest(self) -> str:
        own = {"signal": self.signal, "splitter": model_digest(self.splitter), "temperature": self.temperature}
        return digest({"kind": "subclasses", "teacher": self.teacher.digest(), **own})


@torch.no_grad()
def labelled_features(
    model: nn.Module, task: Any, signal: str, split: str = "train", batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """A model's signal on a split, as vectors (N, D), and the labels (N,), in file order; the model is put into evaluation mode."""
    model.eval()
    features, labels = [], []
    for batch in task.batches(split, batch_size):
        features.append(precise(connect.pool(capture(model, batch, {signal})[signal], batch)))
        labels.append(batch["labels"])
    return torch.cat(features), torch.cat(labels)
