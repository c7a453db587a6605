"""How alike two models' layers are: linear centred kernel alignment over a data set.

    CKA(X, Y) = |X^T Y|_F^2 / (|X^T X|_F |Y^T Y|_F),   X (n, D) and Y (n, E): centred features of the same n examples

It is 1 for features that differ by a rotation and a scale, and small for unrelated ones once n is several times the width.
Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3, with linear kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.measure.latency import device_of, evaluating
from limbeck.objectives import connectors as connect
from limbeck.signals import capture, to_device


@torch.no_grad()
def layer_similarities(
    first: nn.Module,
    second: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    first_layers: Sequence[str],
    second_layers: Sequence[str],
) -> dict[str, dict[str, float]]:
    """CKA between layers of two models: {layer of the first: {layer of the second: CKA}}, over all examples of the batches.

    Layers are signal names (module paths, "logits"); maps and sequences are averaged over their positions. Exact over the
    whole of the batches, whatever their size: sums of products are added up in float64. A layer that says the same of
    every example has the similarity 0. The models are run in evaluation mode.
    Raises UsageError when no layer is named, DataError for fewer than 3 examples.
    """
    if not first_layers or not second_layers:
        raise UsageError("layer_similarities: name at least one layer of each model")
    sides = {f"first {name}": name for name in first_layers}, {f"second {name}": name for name in second_layers}
    count, sums, products = 0, {}, {}
    with evaluating(first), evaluating(second):
        for batch in batches:
            found = {}
            for model, names in zip((first, second), sides):
                signals = capture(model, to_device(batch, device_of(model)), names.values())
                found |= {key: _vectors(signals[name], batch) for key, name in names.items()}
            count += len(next(iter(found.values())))
            for key, x in found.items():
                sums[key] = sums.get(key, 0) + x.sum(0)
            for a, b in _pairs(*sides):
                products[a, b] = products.get((a, b), 0) + found[a].T @ found[b]
    if count < 3:
        raise DataError(f"layer_similarities compares examples; the batches have {count}, and 3 are needed")
    squares = {
        (a, b): float((product - torch.outer(sums[a], sums[b]) / count).square().sum())
        for (a, b), product in products.items()
    }

    def alignment(a: str, b: str) -> float:
        scale = (squares[a, a] * squares[b, b]) ** 0.5
        return squares[a, b] / scale if scale > 0 else 0.0

    return {one: {two: alignment(a, b) for b, two in sides[1].items()} for a, one in sides[0].items()}


def _vectors(feature: Tensor, batch: Mapping[str, Any]) -> Tensor:
    return connect.pool(feature.cpu(), to_device(batch, "cpu")).double()


def _pairs(first: Iterable[str], second: Iterable[str]) -> list[tuple[str, str]]:
    return [(a, a) for a in (*first, *second)] + [(a, b) for a in first for b in second]


def parameter_distance(ours: Iterable[tuple[str, Tensor]], theirs: Iterable[tuple[str, Tensor]]) -> float:
    """sqrt(sum over names in both of |a - b|^2): how far weights have moved, of two `named_parameters()`.

    Raises UsageError when no name is in both.
    """
    other = dict(theirs)
    pairs = [(value, other[name]) for name, value in ours if name in other]
    if not pairs:
        raise UsageError("parameter_distance: the two have no parameter in common")
    return sum((a.detach().double() - b.detach().double()).square().sum().item() for a, b in pairs) ** 0.5
