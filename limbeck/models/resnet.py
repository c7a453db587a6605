"""CIFAR ResNets and WideResNets, as the distillation literature uses them.

    resnet(6n+2):        conv3x3(w) - 3 stages of n basic blocks, widths w, 2w, 4w, strides 1, 2, 2 - mean - fc
    wide_resnet(6n+4,k): conv3x3(16) - 3 stages of n pre-activation blocks, widths 16k, 32k, 64k - BN, ReLU - mean - fc

Where the shape changes, the shortcut is a 1x1 convolution (option B). Convolutions have no bias. Weights are drawn as by
He et al., normal with variance 2 / (k k c_out).
Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; Zagoruyko and Komodakis, "Wide
Residual Networks", BMVC 2016. Deviation: He et al. use the parameter-free shortcut (A) on CIFAR; B adds 1 % (resnet(20) has
272,474 instead of 269,722 parameters) and is what the distillation literature's code uses.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError


class BasicBlock(nn.Module):
    """y = relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)).  (B, C, H, W) -> (B, width, H / stride, W / stride)"""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """y = conv(relu(BN(conv(relu(BN(x)))))) + shortcut; a convolved shortcut starts from relu(BN(x))."""

    def __init__(self, channels: int, width: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(self.dropout(F.relu(self.bn2(self.conv1(out))))) + short


class ResNet(nn.Module):
    """`forward(pixel_values)`: (B, channels, H, W) -> logits (B, classes). Hints attach at layer1, layer2, layer3."""

    def __init__(self, blocks: int, classes: int, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width)
        for stage in (1, 2, 3):
            first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [BasicBlock(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        _initialize(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.pool(x).flatten(1))


class WideResNet(nn.Module):
    """`forward(pixel_values)`: (B, channels, H, W) -> logits (B, classes). Hints attach at layer1, layer2, layer3."""

    def __init__(self, blocks: int, factor: int, classes: int, channels: int, dropout: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        for stage in (1, 2, 3):
            first = PreActivationBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2, dropout)
            rest = [PreActivationBlock(widths[stage], widths[stage], 1, dropout) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)
        _initialize(self)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(pixel_values))))
        return self.fc(self.pool(F.relu(self.bn1(x))).flatten(1))


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _blocks(depth: int, offset: int, family: str) -> int:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 6 + offset or (depth - offset) % 6:
        shown = ", ".join(str(6 * n + offset) for n in (1, 2, 3, 6, 9))
        raise UsageError(f"{family}: depth must be 6n+{offset} ({shown}, ...), not {depth!r}")
    return (depth - offset) // 6


def _positive(family: str, **sizes: int) -> None:
    for field, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{family}: {field} must be a whole number of at least 1, not {value!r}")


def resnet(depth: int, classes: int = 10, channels: int = 3, width: int = 16) -> ResNet:
    """A CIFAR ResNet of depth 6n+2: 8, 14, 20, 32, 44, 56, 110. `width` is that of the first stage.

    Raises UsageError for another depth or a size below one.
    """
    blocks = _blocks(depth, 2, "resnet")
    _positive("resnet", classes=classes, channels=channels, width=width)
    arguments = {"depth": depth, "classes": classes, "channels": channels, "width": width}
    return with_lineage(ResNet(blocks, classes, channels, width), Factory("limbeck.models.resnet:resnet", arguments))


def wide_resnet(depth: int, width: int, classes: int = 10, channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """A WideResNet of depth 6n+4 whose stages are `width` times 16, 32 and 64 wide: wide_resnet(40, 2) is WRN-40-2.

    Raises UsageError for another depth, a size below one or a dropout outside [0, 1).
    """
    blocks = _blocks(depth, 4, "wide_resnet")
    _positive("wide_resnet", width=width, classes=classes, channels=channels)
    if not 0 <= dropout < 1:
        raise UsageError(f"wide_resnet: dropout must lie in [0, 1), not {dropout!r}")
    arguments = {"depth": depth, "width": width, "classes": classes, "channels": channels, "dropout": dropout}
    model = WideResNet(blocks, width, classes, channels, dropout)
    return with_lineage(model, Factory("limbeck.models.resnet:wide_resnet", arguments))
