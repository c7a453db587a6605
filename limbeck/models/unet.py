"""A small U-Net: class scores for every place of an image.

    down.i   [maximum over 2x2, from the second on] - (conv3x3 - BN - ReLU) x layers       widths w_0, w_1, ...; the first conv has stride s
    up.i     upper map resized (bilinear) and beside it down.i - (conv3x3 - BN - ReLU) x layers      from the deepest back
    head     conv1x1 to the classes, at 1/s of the image's size; resized (bilinear) to the image's

Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015, section 2. Deviations:
convolutions are padded and normalized, as is usual since; upper maps are resized instead of convolved upwards; the first stride
and the number of layers are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.cnn import stage


class UNet(nn.Module):
    """`forward(pixel_values)`: (B, channels, H, W), any size -> logits (B, classes, H, W). Hints attach at down.0, ..., up.0 (the last
    map before `head`), ..., and at `head`, whose output is the logits before they are resized."""

    def __init__(self, widths: tuple[int, ...], classes: int, channels: int, layers: int, stride: int):
        super().__init__()
        sources = (channels, *widths[:-1])
        strides = (stride, *[1] * (len(widths) - 1))
        self.down = nn.ModuleList(stage(a, b, 3, s, layers) for a, b, s in zip(sources, widths, strides))
        self.up = nn.ModuleList(stage(a + b, a, 3, 1, layers) for a, b in pairwise(widths))
        self.head = nn.Conv2d(widths[0], classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.head.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        maps = []
        for depth, down in enumerate(self.down):
            maps.append(down(F.max_pool2d(maps[-1], 2, ceil_mode=True) if depth else pixel_values))
        x = maps[-1]
        for depth in reversed(range(len(self.up))):
            x = self.up[depth](torch.cat([maps[depth], _resized(x, maps[depth])], dim=1))
        return _resized(self.head(x), pixel_values)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """A map at another map's height and width."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def unet(
    widths: Sequence[int] = (16, 32, 64), classes: int = 10, channels: int = 3, layers: int = 2, stride: int = 1
) -> UNet:
    """A U-Net with one level per entry of `widths`, each half as large as the one before.

    layers: convolutions of a level, on the way down and on the way up. stride: of the first convolution; above 1 everything is
    computed on smaller maps, and the logits are resized. Raises UsageError for sizes that do not fit.
    """
    widths = tuple(widths)
    sizes = {"classes": classes, "channels": channels, "layers": layers, "stride": stride}
    for name, value in [*sizes.items(), *(("widths", width) for width in widths)]:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"unet: {name} must be whole numbers of at least 1, not {value!r}")
    if len(widths) < 2:
        raise UsageError(f"unet: widths={widths} needs two levels or more")
    factory = Factory("limbeck.models.unet:unet", {"widths": list(widths), **sizes})
    return with_lineage(UNet(widths, classes, channels, layers, stride), factory)
