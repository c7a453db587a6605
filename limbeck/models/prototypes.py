"""Prototypes: a dictionary of feature vectors that sums up one model's tokens and enriches another's.

summary       teacher's tokens of several layers --one width--> x_n --residuals to the prototypes, one vector--> [x_n, v] --> x'_n
augmentation  tokens x_n --E--> e_n,  prototypes c_k --E--> E c_k;   [e_n, sum_k softmax_k(E c_k . e_n) E c_k] --> relu(x_n + ...)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.resnet import resnet


def aggregated_residuals(tokens: Tensor, shares: Tensor, prototypes: Tensor) -> Tensor:
    """What all tokens of an example differ from each prototype by: v_k = sum_n a_nk (x_n - c_k), (B, K, D).

    Shapes: tokens (B, N, D), shares a (B, N, K), prototypes (K, D).
    Source: Arandjelovic et al., "NetVLAD: CNN architecture for weakly supervised place recognition", CVPR 2016, eq. 4.
    """
    return shares.transpose(1, 2) @ tokens - shares.sum(1).unsqueeze(2) * prototypes


def _two_layers(sources: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(sources, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


class PrototypeSummary(nn.Module):
    """A teacher's tokens, enriched with what all of them differ from the prototypes by.

    x = relu(W [layers]);  x^ = x / |x|;  a = softmax_k(U x^);  v_k = sum_n a_nk (x^_n - c_k), each scaled to length 1, then all of them;
    out = two layers with ReLU of [x_n, V v]

    `forward(layers, prototypes)`: tokens (B, N, width) of each layer and prototypes (K, D) -> (B, N, D). widths: of the layers.
    """

    def __init__(self, widths: Sequence[int], width: int, prototypes: int):
        super().__init__()
        self.join = nn.Linear(sum(widths), width)
        self.assign = nn.Linear(width, prototypes)
        self.describe = nn.Linear(prototypes * width, width)
        self.mix = _two_layers(2 * width, width)

    def forward(self, layers: Sequence[Tensor], prototypes: Tensor) -> Tensor:
        tokens = self.join(torch.cat(list(layers), dim=-1)).relu()
        directions = F.normalize(tokens, dim=-1)
        residuals = aggregated_residuals(directions, self.assign(directions).softmax(-1), prototypes)
        summary = self.describe(F.normalize(F.normalize(residuals, dim=-1).flatten(1), dim=-1))
        return self.mix(torch.cat([tokens, summary.unsqueeze(1).expand_as(tokens)], dim=-1))


class PrototypeAugmentation(nn.Module):
    """Tokens enriched with the prototypes that are like them; learnt prototypes (K, D) are its own.

    e = E x;  r_n = sum_k softmax_k(E c_k . e_n) E c_k;  out = relu(x + two layers with ReLU of [e, r])

    `forward(tokens)`: (B, N, width) -> the same.
    """

    def __init__(self, width: int, prototypes: int):
        super().__init__()
        self.prototypes = nn.Parameter(torch.rand(prototypes, width))
        self.encode = nn.Linear(width, width)
        self.mix = _two_layers(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        own, known = self.encode(tokens), self.encode(self.prototypes)
        retrieved = (own @ known.T).softmax(-1) @ known
        return (tokens + self.mix(torch.cat([own, retrieved], dim=-1))).relu()


class PrototypeNet(nn.Module):
    """A residual network whose last map is enriched with prototypes before it is pooled and classified.

    `forward(pixel_values)`: (B, channels, H, W) -> logits (B, classes) of the enriched map, or where `plain`, of the map as it is; both
    through one classifier. `answer(tokens)`: logits of tokens (B, N, width), such as a teacher's. Modules: `backbone` (its layer1 to
    layer3 and `fc`), `augment`.
    """

    def __init__(self, backbone: nn.Module, prototypes: int, plain: bool):
        super().__init__()
        self.backbone = backbone
        self.augment = PrototypeAugmentation(backbone.fc.in_features, prototypes)
        self.plain = plain

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """The last map's places, (B, N, width)."""
        net = self.backbone
        x = net.bn1(net.conv1(pixel_values)).relu()
        return net.layer3(net.layer2(net.layer1(x))).flatten(2).transpose(1, 2)

    def answer(self, tokens: Tensor, plain: bool = False) -> Tensor:
        """Logits (B, classes) of tokens, enriched unless `plain`."""
        return self.backbone.fc((tokens if plain else self.augment(tokens)).mean(1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.answer(self.tokens(pixel_values), self.plain)


def prototype_resnet(
    depth: int, classes: int = 10, channels: int = 3, width: int = 16, prototypes: int = 72, plain: bool = False
) -> PrototypeNet:
    """A CIFAR ResNet of depth 6n+2 with `prototypes` vectors that enrich its last map; plain: it answers without them.

    Source: "Prototype-guided Cross-task Knowledge Distillation for Large-scale Models" (ProC-KD), whose public code was read: the same
    layers on the tokens of a vision transformer, 72 prototypes, first drawn uniformly from 0 to 1. Raises UsageError for sizes that do not fit.
    """
    if isinstance(prototypes, bool) or not isinstance(prototypes, int) or prototypes < 2:
        raise UsageError(f"prototype_resnet: prototypes={prototypes!r} must be a whole number of at least 2")
    model = PrototypeNet(resnet(depth, classes, channels, width), prototypes, bool(plain))
    arguments = {"depth": depth, "classes": classes, "channels": channels, "width": width, "prototypes": prototypes}
    return with_lineage(
        model, Factory("limbeck.models.prototypes:prototype_resnet", arguments | {"plain": bool(plain)})
    )
