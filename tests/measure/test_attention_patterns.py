"""Attention patterns against the definition, on maps that are known and on a model's own."""

import math

import pytest
import torch

from limbeck.errors import DataError, UsageError
from limbeck.measure import attention_patterns, head_distance, normalized_mutual_information
from limbeck.models import vit
from limbeck.objectives import nearest_layer
from limbeck.signals import capture


def plain(a):
    n, keys = len(a), len(a[0])
    marginal = [sum(row[k] for row in a) / n for k in range(keys)]
    information = sum(p * math.log(p / marginal[k]) / n for row in a for k, p in enumerate(row) if p > 0)
    entropy = -sum(p * math.log(p) for p in marginal if p > 0)
    return information / math.sqrt(math.log(n) * entropy)


def test_information_is_the_definitions():
    maps = torch.randn(2, 3, 5, 5).softmax(-1)
    found = normalized_mutual_information(maps)
    for b in range(2):
        for h in range(3):
            assert float(found[b, h]) == pytest.approx(plain(maps[b, h].tolist()), abs=1e-6)


def test_local_maps_have_1_and_global_ones_0():
    ends = torch.stack([torch.eye(6), torch.full((6, 6), 1 / 6), torch.eye(6)[[2] * 6]])
    assert normalized_mutual_information(ends).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert float(normalized_mutual_information(torch.eye(4)[[1, 0, 3, 2]])) == pytest.approx(1)
    with pytest.raises(UsageError, match="at least 2"):
        normalized_mutual_information(torch.ones(3, 1, 1))


def test_heads_that_look_alike_and_apart():
    apart = torch.stack([torch.eye(4), torch.eye(4)[[1, 2, 3, 0]], torch.eye(4)])
    assert float(head_distance(apart[None])[0]) == pytest.approx(2 / 3)
    assert float(head_distance(apart[None, :1])[0]) == 0


def test_patterns_of_a_model_are_means_over_all_images():
    model = vit(size=8, patch=4, depth=2, width=8, heads=2, channels=1)
    layers = [f"blocks.{i}.attention.weights" for i in (0, 1)]
    x = torch.randn(5, 1, 8, 8)
    found = attention_patterns(model, [{"pixel_values": x[:2]}, {"pixel_values": x[2:]}], layers)
    maps = capture(model.eval(), {"pixel_values": x}, layers)
    for layer in layers:
        expected = [[plain(head.tolist()) for head in image] for image in maps[layer].detach()]
        assert found[layer]["information"] == pytest.approx(torch.tensor(expected).mean().item(), abs=1e-5)
        assert found[layer]["head_distance"] == pytest.approx(
            float(head_distance(maps[layer]).mean().detach()), abs=1e-6
        )
    with pytest.raises(DataError, match="no images"):
        attention_patterns(model, [], layers)
    with pytest.raises(UsageError, match="attention maps"):
        attention_patterns(model, [{"pixel_values": x}], ["blocks.0"])


def test_the_nearest_layer():
    values = {"a": 0.5, "b": 0.1, "c": 0.08, "d": 0.02}
    assert nearest_layer(values, 0.09) == "c"  # of two as near the deeper one
    assert nearest_layer(values, 0.4) == "a"
    with pytest.raises(UsageError, match="no layer"):
        nearest_layer({}, 0.09)
