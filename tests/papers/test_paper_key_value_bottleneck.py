"""The key-value bottleneck's arms run on features of a tiny encoder."""

import math
from types import SimpleNamespace

import pytest
import torch

from limbeck.beds.incremental import Incremental
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import key_value_bottleneck as kv

TINY = Incremental(dataset="digits", size=8, train=20, held=5, test=5, memory=4, epochs=1)


class Raw:
    """The bed with its pixels as features."""

    def __getattr__(self, name):
        return getattr(TINY, name)

    def features(self, run):
        return {split: (x.flatten(1).float() / 16, y) for split, (x, y) in TINY.images.items()}

    def unlabelled(self, run):
        return self.features(run)["train"][0] + 0.01 * torch.randn(200, 64)


@pytest.mark.parametrize(
    ("make", "together"), [(kv.keyed, False), (kv.keyed, True), (kv.linear, False), (kv.hidden, False)]
)
def test_the_arms_run(tmp_path, make, together):
    one = Run(0, "validation", Store(tmp_path))
    found = kv.learn(one, make, 0.1, together, bed=Raw())
    assert all(math.isfinite(value) for value in found.values()) and 0 <= found["final_accuracy"] <= 1
    assert one.costs["steps"] == (4 if together else 5)


def test_keys_depend_on_unlabelled_inputs_only_and_values_begin_at_zero(tmp_path):
    model = kv.keyed(SimpleNamespace(), torch.randn(600, 8), TINY, heads=2, head_width=3, keys=16)
    assert bool(model.keys.frozen) and not bool(model.values.any())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["values"]
