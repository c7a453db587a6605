"""Which layer of the teacher a layer of the student learns from, and an objective over all such pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limbeck.errors import UsageError
from limbeck.objectives.base import Objective, Sum


def layer_map(similarities: Mapping[str, Mapping[str, float]], ordered: bool = True) -> dict[str, str]:
    """For each layer of the student the teacher's most similar one: {student's layer: teacher's layer}.

    similarities: {student's layer: {teacher's layer: similarity}}, both from the input on, as
    `limbeck.measure.layer_similarities` measures them on calibration batches. ordered: deeper layers of the student never learn
    from shallower ones of the teacher; of all such maps the one of the largest sum. Ties go to the shallower layer.

        pairs = layer_map(layer_similarities(student, teacher, batches, ("layer1", "layer2"), ("layer1", "layer2", "layer3")))
        objective = SoftTargets(4) + over_layers(Hint, pairs)
    """
    if not similarities or not all(similarities.values()):
        raise UsageError("layer_map: similarities names no layer")
    own, names = list(similarities), list(next(iter(similarities.values())))
    if any(list(row) != names for row in similarities.values()):
        raise UsageError("layer_map: every layer of the student needs a similarity to the same layers of the teacher")
    if not ordered:
        return {layer: max(names, key=row.__getitem__) for layer, row in similarities.items()}
    best: list[tuple[float, list[int]]] = [(0.0, [])] * len(
        names
    )  # best[j]: maps so far whose last choice is at most j
    for layer in own:
        total: list[tuple[float, list[int]]] = []
        for j, name in enumerate(names):
            value, chosen = best[j]
            found = (value + similarities[layer][name], [*chosen, j])
            total.append(found if not total or found[0] > total[-1][0] else total[-1])
        best = total
    return {layer: names[j] for layer, j in zip(own, best[-1][1])}


def nearest_layer(values: Mapping[str, float], target: float) -> str:
    """The layer whose value is nearest to the target; of two the deeper one.

    With `limbeck.measure.attention_patterns`'s information and target 0.09 it is the teacher's layer of hybrid attention, between local
    and global. Source: Zhang et al., "UNIP", 2025, section 4 (0.09; 0.06 to 0.12 are as good).
    """
    if not values:
        raise UsageError("nearest_layer: values names no layer")
    return min(list(values)[::-1], key=lambda layer: abs(values[layer] - target))


def over_layers(make: Callable[..., Objective], pairs: Mapping[str, str], **settings: Any) -> Objective:
    """The mean over pairs of layers of make(student's layer, teacher's layer, **settings), such as Hint or AttentionTransfer."""
    if not pairs:
        raise UsageError("over_layers: pairs is empty: name at least one layer of the student")
    return Sum(tuple((make(own, target, **settings), 1 / len(pairs)) for own, target in pairs.items()))
