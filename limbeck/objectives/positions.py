"""Which positions of a batch count, and the mean over them.

A position is an example (B,), a token of a sequence (B, L) or a place in a map (B, H, W). Padding (`attention_mask` 0), ignored labels (-100) and
examples of weight 0 contribute nothing, neither to the value nor to the gradient, whatever the model put there (NaN too).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError

IGNORED = -100  # the label of a position that does not count


def precise(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is when it is float64: half precision loses small probabilities and long sums."""
    return x if x.dtype == torch.float64 else x.float()


def weights(
    batch: Mapping[str, Any], shape: torch.Size | tuple[int, ...], labels: bool = True, ignore_index: int = IGNORED
) -> Tensor | None:
    """The weight of each position, of shape `shape` ((B,), (B, L) or (B, H, W)), float32; None when all count the same.

    The product of `attention_mask` (of tokens (B, L), and of pairs of tokens (B, L, L) such as attention maps, where both
    must be attended), of `labels != ignore_index` where they are whole numbers of this shape and `labels` is true, and of
    `sample_weight` (B,). In a batch with `decoder_input_ids`, positions of that shape are masked by `decoder_attention_mask`; in one with
    `masked` (B, M), the tokens to be predicted, positions of that shape are these tokens. Raises UsageError for a mask or a weight that does not fit.
    """
    shape, found = tuple(shape), None
    mask, target, weight = (batch.get(name) for name in ("attention_mask", "labels", "sample_weight"))
    decoder = batch.get("decoder_input_ids")
    if decoder is not None and tuple(decoder.shape) == shape:
        mask = batch.get("decoder_attention_mask")
    chosen = batch.get("masked")
    if mask is not None and chosen is not None and tuple(chosen.shape) == shape:
        mask = mask.gather(1, chosen)
    if mask is not None and len(shape) == 2:
        if tuple(mask.shape) != shape:
            raise UsageError(
                f"attention_mask has the shape {tuple(mask.shape)} and the signal has the positions {shape}: "
                "both must be (batch, length)"
            )
        found = (mask != 0).float()
    if mask is not None and len(shape) == 3 and shape == (*mask.shape, mask.shape[-1]):
        found = ((mask != 0).unsqueeze(1) & (mask != 0).unsqueeze(2)).float()
    if labels and isinstance(target, Tensor) and not target.is_floating_point() and tuple(target.shape) == shape:
        counted = (target != ignore_index).float()
        found = counted if found is None else found * counted
    if weight is not None:
        if tuple(weight.shape) != shape[:1]:
            raise UsageError(
                f"sample_weight has the shape {tuple(weight.shape)}; it must be {shape[:1]}, one per example"
            )
        weight = weight.float().reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        found = weight if found is None else found * weight
    return found


def blank(x: Tensor, weights: Tensor | None) -> Tensor:
    """`x` (positions..., features...) with zeros at the positions of weight 0, so that nothing flows from or to them."""
    if weights is None:
        return x
    out = weights == 0
    if out.device.type == "cpu" and not bool(out.any()):
        return x  # elsewhere the question would cost more than the copy
    return x.masked_fill(out.reshape(*out.shape, *[1] * (x.dim() - out.dim())), 0)


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weighted mean sum(w v) / sum(w) over positions; 0 when no position counts."""
    if weights is None:
        return values.mean()
    total = weights.sum()
    return (values * weights).sum() / torch.where(total == 0, torch.ones_like(total), total)


def present(batch: Mapping[str, Any], *features: Tensor) -> tuple[Tensor | None, ...]:
    """The examples that count: every feature's rows of non-zero `sample_weight`, and last the weights of those (B',), or None.

    For what mixes the examples of a batch (batch normalization, relations): a row of weight 0 is not merely blank, it is gone.
    """
    found = weights({"sample_weight": batch.get("sample_weight")}, features[0].shape[:1])
    if found is None:
        return (*features, None)
    there = found != 0
    return (*(blank(feature, found)[there] for feature in features), found[there])
