"""The arms of lossless circuits end to end on small images."""

import math
from dataclasses import dataclass

import pytest
import torch

from limbeck.beds.vq import Pixels, mosaic, tiles
from limbeck.experiments.run import Run
from limbeck.experiments.store import Store
from limbeck.papers import pc_compression


@dataclass(frozen=True)
class Tiny(Pixels):
    def images(self, split):
        draw = torch.Generator().manual_seed(len(split))
        base = torch.randint(0, 2, (60, 1, 3, 1), generator=draw).expand(60, 1, 3, 3) * 200
        return (base + torch.randint(0, 4, base.shape, generator=draw)).to(torch.uint8)


@pytest.mark.parametrize("name", pc_compression.paper.arms)
def test_every_arm_codes_exactly(name, monkeypatch, tmp_path):
    monkeypatch.setattr(pc_compression, "BED", Tiny())
    arm = pc_compression.paper.arms[name]
    one = Run(0, "validation", Store(tmp_path))
    found = arm.run(one, **arm.candidates()[0])
    assert all(math.isfinite(value) for value in found.values())
    assert found["bits_per_pixel"] == pytest.approx(8 * one.costs["bytes"] / 540)
    if name != "baseline":
        assert found["exact"] == 1
        assert found["products"] == 2 * 8


def test_a_mosaic_comes_apart_again():
    images = torch.randint(0, 256, (7, 1, 4, 5), dtype=torch.uint8)
    assert torch.equal(tiles(mosaic(images), 7, 4, 5), images)
