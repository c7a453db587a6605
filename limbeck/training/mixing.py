"""Mixup, CutMix and label smoothing: batches whose labels are probabilities.

After any of the three, `labels` is no longer (B,) class numbers but (B, classes) probabilities, which objectives and
task losses accept as well. Everything random comes from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.errors import UsageError


def soft_labels(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """(B,) class numbers to (B, classes) probabilities: (1 - s) one-hot + s / classes. (B, classes) rows are smoothed alike.

    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016, section 7.
    """
    if labels.ndim == 1 and not labels.is_floating_point():
        if bool((labels < 0).any()) or bool((labels >= classes).any()):
            raise UsageError(
                f"labels must be class numbers 0 to {classes - 1} for label_smoothing, mixup and cutmix; got "
                f"{int(labels.min())} to {int(labels.max())}"
            )
        labels = functional.one_hot(labels, classes).to(torch.float32)
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise UsageError(
            f"labels of shape {tuple(labels.shape)}: label_smoothing, mixup and cutmix need one class per example, "
            f"(B,) numbers or (B, {classes}) probabilities"
        )
    return (1 - smoothing) * labels + smoothing / classes


def mixing_weight(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha), as x / (x + y) of two Gamma(alpha) draws."""
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    total = float(gammas.sum())
    return float(gammas[0]) / total if total > 0 else 0.5


def partial_weights(alpha: float, count: int, share: float, generator: torch.Generator) -> Tensor:
    """Weights (count,) of which round(share count), chosen at random, are draws of Beta(alpha, alpha); the others are 1.

    Source: Choi et al., "Understanding the Role of Mixup in Knowledge Distillation", WACV 2023 (partial mixup). Deviation: the
    authors' code draws the unmixed examples with replacement, so that more than the named share stay mixed.
    """
    gammas = torch._standard_gamma(torch.full((2, count), alpha, dtype=torch.float64), generator=generator)
    total = gammas.sum(0)
    drawn = torch.where(total > 0, gammas[0] / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
    mixed = torch.randperm(count, generator=generator) < round(share * count)
    return torch.where(mixed, drawn, torch.ones_like(drawn)).float()


def mixup(images: Tensor, labels: Tensor, weight: float | Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """x = w x_i + (1 - w) x_j, y = w y_i + (1 - w) y_j with j = order[i]. images (B, ...), labels (B, classes); weight: one for
    all, or one per example (B,).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.
    """
    if isinstance(weight, Tensor):
        own = weight.to(images).reshape(-1, *[1] * (images.dim() - 1))
        weight = weight.to(labels)[:, None]
        return own * images + (1 - own) * images[order], weight * labels + (1 - weight) * labels[order]
    return weight * images + (1 - weight) * images[order], weight * labels + (1 - weight) * labels[order]


def cutmix(images: Tensor, labels: Tensor, weight: float, order: Tensor, centre: tuple[float, float]):
    """Paste a box of area about (1 - w) from x_j into x_i; the labels mix by the area that was really pasted.

    images (B, C, H, W); `centre` in [0, 1)^2 is the middle of the box, which is cut off at the border.
    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers", ICCV 2019, eq. 1 and 2.
    """
    height, width = images.shape[-2:]
    side = (1 - weight) ** 0.5
    rows, columns = int(height * side), int(width * side)
    middle_row, middle_column = int(centre[0] * height), int(centre[1] * width)
    top, bottom = max(0, middle_row - rows // 2), min(height, middle_row - rows // 2 + rows)
    left, right = max(0, middle_column - columns // 2), min(width, middle_column - columns // 2 + columns)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images[order][..., top:bottom, left:right]
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, kept * labels + (1 - kept) * labels[order]


def mix_batch(
    batch: Mapping[str, Any],
    classes: int,
    generator: torch.Generator,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    label_smoothing: float = 0.0,
    mixup_share: float = 1.0,
) -> dict[str, Any]:
    """The batch with smoothed and mixed labels and, for mixup and cutmix, mixed `pixel_values`.

    With both alphas above 0 each batch takes one of the two, by a fair coin. A batch of one example is not mixed. mixup_share
    below 1: only that share of a batch that mixup takes is mixed, each example with a weight of its own.
    """
    out = dict(batch)
    out["labels"] = soft_labels(batch["labels"], classes, label_smoothing)
    size = len(out["labels"])
    if size < 2 or not (mixup_alpha or cutmix_alpha):
        return out
    if "pixel_values" not in batch:
        raise UsageError(f"mixup and cutmix mix images, and the batch has no pixel_values, only {sorted(batch)}")
    images = batch["pixel_values"]
    coin, row, column = torch.rand(3, generator=generator).tolist()
    paste = bool(cutmix_alpha) and (not mixup_alpha or coin < 0.5)
    weight = mixing_weight(cutmix_alpha if paste else mixup_alpha, generator)
    order = torch.randperm(size, generator=generator).to(images.device)
    if paste:
        out["pixel_values"], out["labels"] = cutmix(images, out["labels"], weight, order, (row, column))
    else:
        if mixup_share < 1:
            weight = partial_weights(mixup_alpha, size, mixup_share, generator)
        out["pixel_values"], out["labels"] = mixup(images, out["labels"], weight, order)
    return out
