"""The arms of the code-number codec end to end on small images."""

import math
from dataclasses import dataclass

import pytest
import torch

from limbeck.beds import vq
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import vqgan_codec


@dataclass(frozen=True)
class Tiny(vq.Pixels):
    def _part(self, found, split):
        return found["test"] if split == "test" else found["train"][:60]

    def autoencoder(self, run):
        return super().autoencoder(run, steps=2, codes=70)

    def classifier(self, run):
        return super().classifier(run, steps=2)


@pytest.fixture
def tiny(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    images = {s: torch.randint(0, 256, (60, 1, 28, 28), generator=draw, dtype=torch.uint8) for s in ("train", "test")}
    monkeypatch.setattr(vq, "_images", lambda name: images)
    monkeypatch.setattr(vq, "_labels", lambda name: {s: torch.arange(60) % 10 for s in images})
    monkeypatch.setattr(vqgan_codec, "BED", Tiny())
    monkeypatch.setattr(vqgan_codec, "TUNING", 1)
    monkeypatch.setattr(vqgan_codec, "RESTORING", 1)
    vq._task.cache_clear()
    yield
    vq._task.cache_clear()


@pytest.mark.parametrize("name", ["method", "baseline", "control", "random"])
def test_every_arm_runs(name, tiny, tmp_path):
    arm = vqgan_codec.paper.arms[name]
    found = arm.run(Run(0, "test", Store(tmp_path)), **arm.candidates()[0])
    assert all(math.isfinite(value) for value in found.values())
    for codes in vqgan_codec.SIZES:
        least = 49 * math.log2(codes) / 8
        assert (
            found[f"bytes_{codes}"] >= least if name == "baseline" else least <= found[f"bytes_{codes}"] < least + 0.5
        )


def test_jpeg_gets_at_least_its_budget():
    images = torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)
    made, size = vq.jpeg(images, 5000)
    assert size >= 5000 and made.shape == images.shape
    better, _ = vq.jpeg(images, 12000)
    assert (better.float() - images).square().mean() < (made.float() - images).square().mean()


def test_the_feature_distance_of_an_image_to_itself_is_nothing():
    from limbeck import models

    classifier, images = models.resnet(8, 10, 1, 4).eval(), torch.rand(5, 1, 28, 28)
    assert vq.feature_distance(classifier, images, images) == 0
    near, far = (vq.feature_distance(classifier, images, images + s * torch.randn_like(images)) for s in (0.05, 0.5))
    assert 0 < near < far
