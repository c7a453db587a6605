import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.datasets.images import channel_statistics, decode, decode_masks, resized_regions, shift_and_flip
from limbeck.errors import DataError, UsageError


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


def test_regions_are_windows_of_the_image_of_the_area_that_was_asked():
    ramp = torch.linspace(-1, 1, 64).expand(300, 1, 64, 64)  # each column has the value of its place
    images = torch.cat([ramp, ramp.transpose(2, 3)], 1).contiguous()
    out = resized_regions(images, (0.2, 0.6), torch.Generator().manual_seed(0))
    assert out.shape == images.shape and not torch.equal(out[0], out[1])
    span = out[:, :, 32, 32:33] * 0 + (out.amax((2, 3)) - out.amin((2, 3))).unsqueeze(-1) / 2
    width, height = span[:, 0, 0], span[:, 1, 0]
    area, ratio = width * height, width / height
    assert 0.17 < float(area.min()) < 0.25 and 0.5 < float(area.max()) < 0.63
    assert 0.7 < float(ratio.min()) < 0.85 and 1.18 < float(ratio.max()) < 1.43
    assert float(out.min()) > -1.001 and float(out.max()) < 1.001


def test_the_whole_image_is_a_region_and_bytes_stay_bytes():
    images = torch.randint(0, 256, (3, 2, 8, 8), dtype=torch.uint8)
    draws = torch.Generator().manual_seed(0)
    out = resized_regions(images, (0.3, 1.0), draws)
    assert out.dtype == torch.uint8 and out.shape == images.shape
    again = resized_regions(images, (0.3, 1.0), torch.Generator().manual_seed(0))
    assert torch.equal(out, again)
    with pytest.raises(UsageError, match="region"):
        resized_regions(images, (0.0, 1.0), draws)


def test_masks_hold_numbers_whatever_their_palette():
    numbers = np.random.default_rng(0).integers(0, 12, (2, 4, 6), np.uint8)
    coloured = []
    for mask in numbers:
        picture = Image.fromarray(mask).convert("L").copy()
        picture.putpalette([255 - i for i in range(256) for _ in range(3)])
        file = io.BytesIO()
        picture.save(file, "PNG")
        coloured.append({"bytes": file.getvalue(), "path": None})
    palette = datasets.Dataset.from_dict({"image": coloured}).cast_column("image", datasets.Image())
    for rows in (table(numbers), palette):
        assert torch.equal(decode_masks(rows, "image", "here"), torch.from_numpy(numbers))
    small = decode_masks(table(numbers), "image", "here", (2, 3))
    assert small.shape == (2, 2, 3) and set(small.unique().tolist()) <= set(numbers.ravel().tolist())


def test_a_mask_of_several_channels_is_refused():
    with pytest.raises(DataError, match="mode 'RGB'; a mask has one number"):
        decode_masks(table(np.zeros((1, 4, 4, 3), np.uint8)), "image", "here")


def test_a_size_may_have_two_sides():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert decode(table(pixels), "image", "here", (4, 6)).shape == (2, 3, 4, 6)
