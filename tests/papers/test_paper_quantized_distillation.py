import dataclasses
import math

import pytest
import torch
from torch import nn

from limbeck.beds.images import DIGITS
from limbeck.experiments import Run, Store
from limbeck.papers import quantized_distillation as module


@pytest.fixture
def small(tmp_path, monkeypatch):
    training = dataclasses.replace(DIGITS.training, epochs=1)
    monkeypatch.setattr(
        module, "BED", dataclasses.replace(DIGITS, train=96, training=training, teacher_training=training)
    )
    return lambda: Run(0, "validation", Store(tmp_path / "store"))


@pytest.mark.parametrize("name", list(module.paper.arms))
def test_every_arm_runs_and_spends_alike(small, name):
    run, arm = small(), module.paper.arms[name]
    found = arm.run(run, **{**arm.candidates()[-1], "epochs": 2})
    assert all(math.isfinite(value) for value in found.values())
    assert 0 <= found["accuracy"] <= 1
    assert (run.costs["steps"], run.costs["samples"]) == (6, 192)
    assert name == "float" or found["compression"] > 3


def test_two_bits_are_smaller_than_four(small):
    two, four = (module.quantized(small(), bits=bits, epochs=1)["bytes"] for bits in (2, 4))
    assert two < four


def test_batch_norms_are_measured_over_the_batches():
    net = nn.Sequential(nn.BatchNorm2d(2))
    rows = torch.randn(8, 2, 3, 3) * 3 + 1
    module.measure_batch_norms(net, [{"pixel_values": rows[:4]}, {"pixel_values": rows[4:]}])
    torch.testing.assert_close(net[0].running_mean, rows.mean((0, 2, 3)))
    assert net[0].momentum == 0.1
    assert not net.training


def test_the_composition_is_the_papers():
    weights = [weight for _, weight in module.DISTILLED.terms]
    assert weights == [0.7, 0.3]
    assert module.DISTILLED.terms[0][0].temperature == 2.0
    assert (module.BITS, module.BUCKET) == (2, 256)
