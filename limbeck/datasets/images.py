"""Images as uint8 tensors, and their augmentation over whole batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError


def _pictures(dataset: Any, column: str, where: str) -> Iterator[tuple[int, Any]]:
    """Every row's number and its image, opened; DataError for a column or a cell that holds none."""
    import datasets
    from PIL import Image

    if not isinstance(dataset.features[column], datasets.Image):
        try:
            dataset = dataset.cast_column(column, datasets.Image())
        except Exception as error:
            raise DataError(f"{where}: column {column!r} does not hold images: {error}") from error
    cells = dataset.select_columns(column).cast_column(column, datasets.Image(decode=False)).with_format("arrow")
    for row, cell in enumerate(value for chunk in cells.iter(1000) for value in chunk[column].to_pylist()):
        try:
            image = Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"])
            image.load()
        except (OSError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: row {row} of column {column!r} is not an image: {error}") from error
        yield row, image


def _stacked(count: int, pixels: Iterator[tuple[int, np.ndarray]], where: str) -> np.ndarray:
    """Arrays (H, W, ...) of one size as one array (N, H, W, ...)."""
    made: np.ndarray | None = None
    for row, image in pixels:
        if made is None:
            made = np.empty((count, *image.shape), image.dtype)
        if image.shape != made.shape[1:]:
            raise DataError(
                f"{where}: row {row} is an image of {image.shape[1]}x{image.shape[0]} pixels, the first is of "
                f"{made.shape[2]}x{made.shape[1]}. Set size to resize them all"
            )
        made[row] = image
    if made is None:
        raise DataError(f"{where} is empty")
    return made


def _sides(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(width, height), as pictures have it, of a side or of (height, width)."""
    return size if size is None else (size, size) if isinstance(size, int) else (size[1], size[0])


def decode(
    dataset: Any, column: str, where: str, size: int | tuple[int, int] | None = None, channels: int | None = None
) -> Tensor:
    """Decode a column of images into one uint8 tensor (N, C, H, W).

    size: resize to size x size, or to (height, width) (bilinear); without it all images must have one size. channels: 1 or 3;
    by default that of the first image, where any colour format counts as 3. Raises DataError for anything that is not an image.
    """
    from PIL import Image

    sides = _sides(size)

    def pixels() -> Iterator[tuple[int, np.ndarray]]:
        wanted = channels
        for row, image in _pictures(dataset, column, where):
            wanted = wanted or (1 if image.mode in ("1", "L", "I", "I;16", "F") else 3)
            image = image.convert("L" if wanted == 1 else "RGB")
            if sides is not None and image.size != sides:
                image = image.resize(sides, Image.Resampling.BILINEAR)
            yield row, np.asarray(image).reshape(image.size[1], image.size[0], wanted)

    made = _stacked(len(dataset), pixels(), where)
    return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()


def decode_masks(dataset: Any, column: str, where: str, size: tuple[int, int] | None = None) -> Tensor:
    """Decode a column of masks, images whose pixels are class numbers 0 to 255, into one uint8 tensor (N, H, W).

    Of a picture with a palette the numbers count, not the colours. size: resize to (height, width); every pixel takes the class of
    the nearest one. Raises DataError for images of several channels.
    """
    from PIL import Image

    sides = _sides(size)

    def numbers() -> Iterator[tuple[int, np.ndarray]]:
        for row, image in _pictures(dataset, column, where):
            if image.mode not in ("1", "L", "P"):
                raise DataError(
                    f"{where}: row {row} of column {column!r} is an image of mode {image.mode!r}; a mask has one number from 0 to 255 "
                    "per pixel (modes L, P and 1)"
                )
            if sides is not None and image.size != sides:
                image = image.resize(sides, Image.Resampling.NEAREST)
            yield row, np.asarray(image).astype(np.uint8)

    return torch.from_numpy(_stacked(len(dataset), numbers(), where))


def channel_statistics(images: Tensor, scale: float = 255.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, C, H, W) / scale; exact, from histograms."""
    values = torch.arange(256, dtype=torch.float64) / scale
    means, deviations = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double() / images[:, channel].numel()
        mean = (share * values).sum()
        means.append(round(mean.item(), 6))
        deviations.append(round(max((share * (values - mean) ** 2).sum().sqrt().item(), 1e-6), 6))
    return tuple(means), tuple(deviations)


def shift_and_flip(images: Tensor, padding: int, flip: bool, draws: torch.Generator) -> Tensor:
    """Random crops of images padded with `padding` zeros on every side, and horizontal flips with probability 1/2.

    Shapes: images (B, C, H, W) of any type; returns the same. Every image draws its own offsets, uniform in 0..2 padding.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=draws)
    mirrored = (torch.rand(count, generator=draws) < 0.5) & flip
    rows = top[:, None] + torch.arange(height)
    across = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(mirrored[:, None], across.flip(1), across)
    padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    picked = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def resized_regions(images: Tensor, region: tuple[float, float], draws: torch.Generator) -> Tensor:
    """A random region of every image, resized to the image's size (bilinear).

    region: smallest and largest share of the area, drawn uniformly; the region's width over its height is between 3/4 and 4/3,
    log-uniform; its place is uniform among those inside. Shapes: images (B, C, H, W) of any type; returns the same. Source: Szegedy et
    al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """
    low, high = region
    if not 0 < low <= high <= 1:
        raise UsageError(f"region={region!r} must be two shares of the area, above 0, rising, at most 1")
    count = len(images)
    area, ratio, across, down = torch.rand(4, count, generator=draws)
    area = low + (high - low) * area
    ratio = (4 / 3) ** (2 * ratio - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1] = width, height
    turn[:, 0, 2], turn[:, 1, 2] = (1 - width) * (2 * across - 1), (1 - height) * (2 * down - 1)
    grid = torch.nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    picked = torch.nn.functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return picked.to(images.dtype) if images.is_floating_point() else picked.round().to(images.dtype)
