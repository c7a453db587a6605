"""The beds of pixels: what they give, and what their reference reaches."""

import math

import pytest
import torch

from limbeck.beds import vq
from limbeck.beds.vq import Crops, Pixels, crops, mosaic, psnr, tiles, usual_codecs
from limbeck.datasets.load import find_folder
from limbeck.errors import UsageError
from limbeck.experiments import Run, Store


@pytest.fixture
def photographs(monkeypatch):
    """Twelve pictures in two formats, each of one colour that no other has."""
    made = [torch.full((3, 16 + 8 * (n % 2), 24 - 8 * (n % 2)), 10 * n, dtype=torch.uint8) for n in range(12)]
    monkeypatch.setattr(vq, "_photographs", lambda name: made)
    for cached in (vq._crops, vq._task):
        cached.cache_clear()
    yield made
    for cached in (vq._crops, vq._task):
        cached.cache_clear()


def test_no_photograph_is_in_two_splits(photographs):
    bed = Crops(size=8, train=40, measured=4)
    seen = {split: {int(colour) for colour in bed.images(split).unique()} for split in ("train", "validation", "test")}
    assert seen["validation"] == {40, 100} and seen["test"] == {50, 110} and len(seen["train"]) == 8
    assert not seen["train"] & (seen["validation"] | seen["test"])
    for split in seen:
        assert (bed.images(split)[:, 0, 0, 0] == 10 * bed.labels(split)).all()
        assert bed.images(split).shape[1:] == (3, 8, 8)
    assert bed.digest() != Crops(size=8, train=48, measured=4).digest() and bed.collections() == ("kodak",)
    assert bed.task().size("train") == 40


def test_crops_are_parts_of_the_picture():
    height, width = 20, 13
    picture = torch.arange(height * width).reshape(1, height, width)
    for part in crops(picture, 4, 30, torch.Generator().manual_seed(0))[:, 0]:
        top, left = divmod(int(part[0, 0]), width)
        assert torch.equal(part, picture[0, top : top + 4, left : left + 4])
    even = crops(picture, 4, 15)  # the whole grid of 5 x 3
    assert even[:, 0, 0, 0].tolist() == [4 * y * width + 4 * x for y in range(5) for x in range(3)]
    with pytest.raises(UsageError, match="1 to 15"):
        crops(picture, 4, 16)
    with pytest.raises(UsageError, match="multiple of 4"):
        Crops(size=30)


def test_pictures_in_colour_are_put_together_and_coded():
    images = torch.randint(0, 256, (7, 3, 8, 4), dtype=torch.uint8)
    together = mosaic(images)
    assert together.shape == (24, 12, 3) and torch.equal(together[:8, 4:8].permute(2, 0, 1), images[1])
    assert torch.equal(tiles(together, 7, 8, 4), images)
    flat = torch.zeros_like(images)
    assert all(usual_codecs(flat)[name] < size for name, size in usual_codecs(images).items())


def test_decibels():
    one = torch.zeros(2, 3)
    assert psnr(one, one + 0.1) == pytest.approx(20.0, abs=1e-4) and math.isfinite(psnr(one, one))


class Quick(Crops):
    def autoencoder(self, run, steps=2, codes=256):
        return super().autoencoder(run, steps, codes)


def test_the_reference_is_measured(photographs, tmp_path):
    bed, run = Quick(size=8, train=16, measured=4), Run(0, "validation", Store(tmp_path))
    found = bed.reference(run)
    assert set(found) == set(bed.expects) and all(math.isfinite(value) for value in found.values())
    assert not run.costs and bed.reference(run) == found


@pytest.mark.slow
@pytest.mark.parametrize("bed", [Pixels(), Crops()], ids=lambda bed: bed.name)
def test_the_reference_reaches_what_the_bed_says(bed, tmp_path):
    if find_folder(bed.name) is None:
        pytest.skip("the data set is not on this machine")
    found = bed.reference(Run(0, "test", Store(tmp_path)))
    for name, (low, high) in bed.expects.items():
        assert low <= found[name] <= high
