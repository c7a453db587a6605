"""A plain convolutional network: any number of stages, each with its own width, kernel and stride.

stage i:  conv(k_i, stride s_i, no bias) - BN - ReLU  (x layers)        cnn:  stages - mean over places - fc
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError


def stage(channels: int, width: int, kernel: int, stride: int, layers: int) -> nn.Sequential:
    """(conv - BN - ReLU) x layers; the first convolution has the stride.  (B, channels, H, W) -> (B, width, H / stride, W / stride)"""
    parts = []
    for layer in range(layers):
        step, source = (stride, channels) if layer == 0 else (1, width)
        parts += [nn.Conv2d(source, width, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts)


class CNN(nn.Module):
    """`forward(pixel_values)`: (B, channels, H, W) -> logits (B, classes). Hints attach at stages.0, stages.1, ...

    `features(pixel_values)`: the pooled last map (B, widths[-1]), what `fc` reads.
    """

    def __init__(self, widths, kernels, strides, layers, classes: int, channels: int, bias: bool):
        super().__init__()
        sources = (channels, *widths[:-1])
        self.stages = nn.Sequential(*map(stage, sources, widths, kernels, strides, layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], classes, bias=bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if bias:
            nn.init.zeros_(self.fc.bias)

    def features(self, pixel_values: Tensor) -> Tensor:
        return self.pool(self.stages(pixel_values)).flatten(1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.fc(self.features(pixel_values))


def cnn(
    widths: Sequence[int] = (16, 32, 64),
    kernels: Sequence[int] | int = 3,
    strides: Sequence[int] = (),
    layers: Sequence[int] | int = 1,
    classes: int = 10,
    channels: int = 3,
    bias: bool = True,
) -> CNN:
    """A plain CNN with one stage per entry of `widths`.

    kernels, layers: one odd size and one number of convolutions for all stages, or one per stage. strides: of the first
    convolution of each stage; by default 1 in the first stage and 2 in the others. bias: of the classifier `fc`.
    Raises UsageError for sizes that do not fit.
    """
    count = len(widths)
    per_stage = {
        "widths": tuple(widths),
        "kernels": (kernels,) * count if isinstance(kernels, int) else tuple(kernels),
        "strides": tuple(strides) or (1, *[2] * (count - 1)),
        "layers": (layers,) * count if isinstance(layers, int) else tuple(layers),
    }
    for name, values in per_stage.items():
        if not values or len(values) != count:
            raise UsageError(f"cnn: {name}={values} must have one entry per stage, as widths has ({count})")
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise UsageError(f"cnn: {name}={values} must be whole numbers of at least 1")
    if any(kernel % 2 == 0 for kernel in per_stage["kernels"]):
        raise UsageError(f"cnn: kernels={per_stage['kernels']} must be odd, so that a map keeps its size")
    if min(classes, channels) < 1:
        raise UsageError(f"cnn: classes={classes} and channels={channels} must be at least 1")
    arguments = {**{k: list(v) for k, v in per_stage.items()}, "classes": classes, "channels": channels, "bias": bias}
    model = CNN(**per_stage, classes=classes, channels=channels, bias=bias)
    return with_lineage(model, Factory("limbeck.models.cnn:cnn", arguments))
