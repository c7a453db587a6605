"""The diffusion beds: what they give, and what their reference reaches."""

import dataclasses

import pytest
import torch

from limbeck.beds.diffusion import DigitsBed, MixtureBed, copies
from limbeck.experiments import Run, Store

BEDS = {"plane": MixtureBed(), "digits": DigitsBed()}


def test_the_plane_has_unit_variance_and_a_perfect_teacher():
    bed = MixtureBed()
    points, modes = bed.points("train")
    assert torch.allclose(points.var(0), torch.ones(2), atol=0.05) and modes.unique().tolist() == list(range(8))
    assert not torch.equal(bed.points("validation")[0], bed.points("test")[0])
    t = torch.full((8,), 0)
    centres = bed.mixture.centres
    assert torch.allclose(bed.exact()(bed.schedule.at(t, centres).sqrt() * centres, t), centres, atol=0.01)


def test_quality_tells_real_points_from_noise():
    bed, run = MixtureBed(), Run(0, "validation")
    real, noise = (bed.quality(run, points) for points in (bed.points("test")[0], torch.randn(500, 2)))
    assert abs(real["mmd"]) < 0.002 < noise["mmd"] and real["precision"] > 0.95 > noise["precision"]


def test_copies_are_apart():
    first, second = copies(MixtureBed().denoiser(), 2)
    parameter = next(first.parameters())
    assert parameter.requires_grad and parameter is not next(second.parameters())


def test_the_pretrained_denoiser_is_found_again(tmp_path):
    bed = dataclasses.replace(MixtureBed(), width=16, blocks=1, steps=3, batch_size=16, examples=64)
    run, again = Run(0, store=Store(tmp_path)), Run(1, store=Store(tmp_path))
    first, second = bed.pretrained(run), bed.pretrained(again)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert again.store.used[0]["hit"] and not run.costs


@pytest.mark.slow
@pytest.mark.parametrize("name", BEDS)
def test_the_reference_reaches_what_the_bed_expects(name):
    found = BEDS[name].reference(Run(0))
    for metric, (low, high) in BEDS[name].expects.items():
        assert low <= found[metric] <= high, (metric, found[metric])
