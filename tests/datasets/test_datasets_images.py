import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.datasets.images import channel_statistics, decode, shift_and_flip
from limbeck.errors import DataError


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(images):
    return datasets.Dataset.from_dict({"image": [png(i) for i in images]}).cast_column("image", datasets.Image())


def test_decodes_what_was_encoded():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), np.uint8)
    made = decode(table(pixels), "image", "here")
    assert made.dtype == torch.uint8 and torch.equal(made, torch.from_numpy(pixels).permute(0, 3, 1, 2))


def test_grey_stays_one_channel_unless_three_are_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 5), np.uint8)
    assert torch.equal(decode(table(pixels), "image", "here"), torch.from_numpy(pixels)[:, None])
    assert decode(table(pixels), "image", "here", channels=3).shape == (3, 3, 5, 5)


def test_different_sizes_need_a_size():
    images = [np.zeros((4, 4), np.uint8), np.zeros((6, 5), np.uint8)]
    with pytest.raises(DataError, match=r"row 1 is an image of 5x6 pixels, the first is of 4x4. Set size"):
        decode(table(images), "image", "here")
    assert decode(table(images), "image", "here", size=8).shape == (2, 1, 8, 8)


def test_not_an_image():
    rows = datasets.Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}]})
    with pytest.raises(DataError, match="row 0 of column 'image' is not an image"):
        decode(rows.cast_column("image", datasets.Image()), "image", "here")
    with pytest.raises(DataError, match="does not hold images"):
        decode(datasets.Dataset.from_dict({"image": [1, 2]}), "image", "here")


def test_channel_statistics_equal_numpy():
    images = torch.randint(0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    array = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, array.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(std, array.std((0, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_and_flip_equals_one_image_at_a_time(padding, flip):
    images = torch.randint(1, 256, (32, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = shift_and_flip(images, padding, flip, torch.Generator().manual_seed(2))
    draws = torch.Generator().manual_seed(2)
    top, left = torch.randint(0, 2 * padding + 1, (2, 32), generator=draws)
    mirrored = torch.rand(32, generator=draws) < 0.5
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    for i in range(32):
        one = padded[i, :, top[i] : top[i] + 5, left[i] : left[i] + 4]
        expected = one[:, :, ::-1] if flip and mirrored[i] else one
        assert np.array_equal(made[i].numpy(), expected)
    assert 0 < mirrored.sum() < 32 and (padding == 0 or len(set(top.tolist())) == 2 * padding + 1)
