"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import Block, check_sizes, initialize


class ViT(nn.Module):
    """Patches by a strided convolution, a class token, learned positions, pre-norm blocks, a last norm, a linear head.

    `forward(pixel_values)`: (B, channels, size, size) -> logits (B, classes), read from the class token. In between
    `embed` gives the tokens (B, 1 + patches, width), class token first, and `encode` takes any part of them through the blocks.
    With `distilled` there is a distillation token after the class token with a head of its own, and the answer is the mean of both heads'
    logits; objectives reach them as the signals "head" and "distillation_head".
    """

    def __init__(
        self,
        size: int,
        patch: int,
        classes: int,
        channels: int,
        depth: int,
        width: int,
        heads: int,
        hidden: int,
        dropout: float,
        distilled: bool = False,
    ):
        super().__init__()
        self.size = size
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distilled = distilled
        if distilled:
            self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1 + distilled, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        if distilled:
            self.distillation_head = nn.Linear(width, classes)
        initialize(self, depth)
        nn.init.normal_(self.positions, std=0.02)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The tokens with their positions: (B, channels, size, size) -> (B, 1 + patches, width), one more where `distilled`."""
        if pixel_values.shape[-2] != self.size or pixel_values.shape[-1] != self.size:
            raise UsageError(f"vit: images must be {self.size}x{self.size}, not {tuple(pixel_values.shape[-2:])}")
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = [self.class_token, *([self.distillation_token] if self.distilled else [])]
        return torch.cat([*(token.expand(x.shape[0], -1, -1) for token in tokens), x], 1) + self.positions

    def encode(self, tokens: Tensor) -> Tensor:
        """Tokens through all blocks and the last norm: (B, L, width) -> (B, L, width)."""
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.encode(self.embed(pixel_values))
        if not self.distilled:
            return self.head(x[:, 0])
        return (self.head(x[:, 0]) + self.distillation_head(x[:, 1])) / 2


class VisiblePatches(nn.Module):
    """A vision transformer that is shown a part of each image's patches.

    `forward(pixel_values, shown)`: shown (B, visible), the numbers of the patches that are seen -> encoded (B, 1 + visible, width),
    class token first, then the patches in the order of `shown`. The transformer is the submodule "model", its blocks "model.blocks.I".
    Raises UsageError for a model that is no `limbeck.models.vit`, or one with a distillation token.
    """

    def __init__(self, model: ViT):
        super().__init__()
        if not isinstance(model, ViT) or model.distilled:
            raise UsageError("VisiblePatches needs a limbeck.models.vit without a distillation token")
        self.model = model

    def forward(self, pixel_values: Tensor, shown: Tensor) -> Tensor:
        tokens = self.model.embed(pixel_values)
        kept = tokens[:, 1:].gather(1, shown.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
        return self.model.encode(torch.cat([tokens[:, :1], kept], 1))


def vit(
    size: int = 32,
    patch: int = 4,
    classes: int = 10,
    channels: int = 3,
    depth: int = 6,
    width: int = 128,
    heads: int = 4,
    hidden: int | None = None,
    dropout: float = 0.0,
    distilled: bool = False,
) -> ViT:
    """A ViT on size x size images in patches of patch x patch; `hidden` is the feed-forward width, by default 4 x width.

    distilled: with a distillation token and head. Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; Touvron et
    al., "Training data-efficient image transformers & distillation through attention" (DeiT), ICML 2021, section 4. Raises UsageError for bad sizes.
    """
    hidden = 4 * width if hidden is None else hidden
    sizes = {"size": size, "patch": patch, "classes": classes, "channels": channels, "depth": depth, "hidden": hidden}
    check_sizes("vit", width, heads, dropout, **sizes)
    if size % patch:
        raise UsageError(f"vit: patch must divide size; {patch} does not divide {size}")
    arguments = {**sizes, "width": width, "heads": heads, "dropout": dropout}
    if distilled:
        arguments["distilled"] = True
    return with_lineage(ViT(**arguments), Factory("limbeck.models.vit:vit", arguments))
