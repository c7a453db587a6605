"""What attention maps are like: local or global, and whether heads look at different things.

A_qk is the share of its attention that the query q gives to the key k. With p(q) = 1/N and p(k | q) = A_qk,

    NMI = I(q; k) / sqrt(H(q) H(k)),   I = mean over q of sum_k A_qk log(A_qk / p(k)),   p(k) = mean over q of A_qk

is 0 when every query looks at the same places (global), and 1 when each looks at one of its own (local).
Source: Park et al., "What Do Self-Supervised Vision Transformers Learn?", ICLR 2023, section 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.measure.latency import device_of, evaluating
from limbeck.objectives.positions import precise
from limbeck.signals import capture, to_device


def normalized_mutual_information(maps: Tensor) -> Tensor:
    """NMI of attention maps whose rows sum to 1: (..., N, N) to (...), in [0, 1]; N at least 2.

    Where all queries look at one and the same key, H(k) = 0 and the NMI is 0. Raises UsageError for fewer than 2 queries.
    """
    if maps.dim() < 2 or maps.shape[-1] < 2 or maps.shape[-2] < 2:
        raise UsageError(f"attention maps must be (..., queries, keys) of at least 2 each, not {tuple(maps.shape)}")
    shares = precise(maps).double()
    marginal = shares.mean(-2)
    information = (torch.special.xlogy(shares, shares).sum(-1)).mean(-1) - torch.special.xlogy(marginal, marginal).sum(
        -1
    )
    keys = -torch.special.xlogy(marginal, marginal).sum(-1)
    scale = (keys * torch.tensor(float(maps.shape[-2])).log()).clamp(min=0).sqrt()
    return torch.where(scale > 1e-9, information / scale.clamp(min=1e-9), 0.0).clamp(0, 1)


def head_distance(maps: Tensor) -> Tensor:
    """The mean cosine distance between the maps of two heads: (B, heads, N, N) to (B,); 0 for one head."""
    flat = nn.functional.normalize(precise(maps).flatten(2), dim=-1)
    heads = flat.shape[1]
    if heads < 2:
        return flat.new_zeros(len(flat))
    apart = 1 - flat @ flat.transpose(1, 2)
    return apart.sum((1, 2)) / (heads * (heads - 1))


@torch.no_grad()
def attention_patterns(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], layers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """{layer: {"information": NMI over images and heads, "head_distance": over images}} of signals that are attention maps.

    layers: signal names whose values are (B, heads, N, N), such as "blocks.3.attention.weights". Every image counts the same.
    Raises UsageError for other shapes, DataError when there are no images.
    """
    totals, count = {layer: [0.0, 0.0] for layer in layers}, 0
    with evaluating(model):
        for batch in batches:
            signals = capture(model, to_device(batch, device_of(model)), layers)
            for layer, total in totals.items():
                maps = signals[layer]
                if maps.dim() != 4:
                    raise UsageError(f"signal {layer!r} is {tuple(maps.shape)}; attention maps are (B, heads, N, N)")
                total[0] += float(normalized_mutual_information(maps).mean(1).sum())
                total[1] += float(head_distance(maps).sum())
            count += len(signals[layers[0]])
    if not count:
        raise DataError("attention_patterns: there are no images")
    return {layer: {"information": a / count, "head_distance": b / count} for layer, (a, b) in totals.items()}
