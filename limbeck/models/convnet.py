"""The small convolutional network of the dataset distillation literature.

    [ conv3x3(width) - instance norm - ReLU - average pool 2 ] x depth - fc

Source: Gidaris and Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", CVPR 2018; with instance norm as in Zhao et al.,
"Dataset Condensation with Gradient Matching", ICLR 2021.
"""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError


class ConvNet(nn.Module):
    """`forward(pixel_values)`: (B, channels, size, size) -> logits (B, classes). `features` yields (B, width, s, s)."""

    def __init__(self, depth: int, width: int, classes: int, channels: int, size: int):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [
                nn.Conv2d(channels if index == 0 else width, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(width * (size >> depth) ** 2, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.fc(self.features(pixel_values).flatten(1))


def convnet(depth: int = 3, width: int = 128, classes: int = 10, channels: int = 3, size: int = 32) -> ConvNet:
    """ConvNet-`depth` for square images of `size`. Raises UsageError for sizes below one or more halvings than the image has."""
    for name, value in (
        ("depth", depth),
        ("width", width),
        ("classes", classes),
        ("channels", channels),
        ("size", size),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"convnet: {name} must be a whole number of at least 1, not {value!r}")
    if size >> depth < 1:
        raise UsageError(f"convnet: images of {size} pixels cannot be halved {depth} times: use a smaller depth")
    arguments = {"depth": depth, "width": width, "classes": classes, "channels": channels, "size": size}
    return with_lineage(ConvNet(**arguments), Factory("limbeck.models.convnet:convnet", arguments))
