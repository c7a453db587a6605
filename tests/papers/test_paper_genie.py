"""Genie's paper file: its arms run on different images, see as many, and are what the paper says."""

from dataclasses import replace

import pytest
from arms import assert_alike, run_arms

from limbeck.beds.images import DIGITS, Network
from limbeck.papers import genie as module

TINY = replace(DIGITS, teacher_training=replace(DIGITS.teacher_training, epochs=1), train=64, teacher_train=64)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "IMAGES", 16)
        patch.setattr(module, "NETWORK", Network(14, 4))
        return run_arms(module.paper, tmp_path_factory.mktemp("store"), bed=TINY, steps=3, iterations=4)


def test_every_arm_runs_and_sees_as_many_images(results):
    assert_alike(module.paper, results, "images")


def test_the_arms_differ(results):
    assert len({found["loss"] for found, _ in results.values()}) == len(results)


def test_the_composition_is_the_papers():
    assert (module.BITS, module.PIXEL_RATE, module.GENERATOR_RATE) == (2, 0.1, 0.01)
    assert all(arm.settings.get("scale_rate") is None for name, arm in module.paper.arms.items() if name != "fixed")
