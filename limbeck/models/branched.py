"""Several classifiers on one trunk: experts that share their early layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.resnet import resnet


class Branched(nn.Module):
    """A trunk and heads on its output; the answer is the mean of the heads' logits.

    `forward(pixel_values)`: trunk's input -> logits (B, classes). An objective reaches the m-th head as the signal "heads.m".
    """

    def __init__(self, trunk: nn.Module, heads: Iterable[nn.Module]):
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleList(heads)
        if len(self.heads) < 2:
            raise UsageError(f"Branched: {len(self.heads)} heads; there must be two or more")

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.trunk(pixel_values)
        return torch.stack([head(x) for head in self.heads]).mean(0)


def branched_resnet(
    depth: int, heads: int = 3, classes: int = 10, channels: int = 3, width: int = 16, shared: int = 2
) -> Branched:
    """A CIFAR ResNet of depth 6n+2 whose first `shared` of three stages are common and whose later ones each head has for itself.

    With stages of their own the heads can become different experts. Source of the form: Wang et al., "Long-tailed Recognition by
    Routing Diverse Distribution-Aware Experts" (RIDE), ICLR 2021, which shares the first stages too. Raises UsageError for other sizes.
    """
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 2:
        raise UsageError(f"branched_resnet: heads={heads!r} must be a whole number of at least 2")
    if shared not in (0, 1, 2, 3):
        raise UsageError(
            f"branched_resnet: shared={shared!r} must be 0, 1, 2 or 3: how many of three stages are common"
        )
    nets = [resnet(depth, classes, channels, width) for _ in range(heads)]
    stages = [[getattr(net, f"layer{stage}") for stage in (1, 2, 3)] for net in nets]
    first = nets[0]
    trunk = nn.Sequential(first.conv1, first.bn1, nn.ReLU(), *stages[0][:shared])
    made = [nn.Sequential(*own[shared:], net.pool, nn.Flatten(), net.fc) for net, own in zip(nets, stages)]
    arguments = {
        "depth": depth,
        "heads": heads,
        "classes": classes,
        "channels": channels,
        "width": width,
        "shared": shared,
    }
    return with_lineage(Branched(trunk, made), Factory("limbeck.models.branched:branched_resnet", arguments))
