"""Masked image modelling: a vision transformer learns, without labels, to draw the patches it was not shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models.layers import Block, initialize
from limbeck.models.vit import VisiblePatches, ViT
from limbeck.objectives import positions
from limbeck.objectives.base import Loss
from limbeck.signals import model_inputs
from limbeck.training.procedures import Losses, Procedure, State


class PatchDecoder(nn.Module):
    """Draws every patch from the encoded visible ones.

    `forward(encoded, hidden)`: encoded (B, 1 + visible, inputs), class token first, and for each of all patches its place in
    `encoded` or -1 (B, patches) -> pixels (B, patches, outputs). A patch that was not encoded is one learned token.
    """

    def __init__(self, inputs: int, patches: int, outputs: int, width: int, depth: int, heads: int):
        super().__init__()
        self.narrow = nn.Linear(inputs, width)
        self.hidden = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, outputs)
        initialize(self, depth)
        for parameter in (self.hidden, self.positions):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, encoded: Tensor, places: Tensor) -> Tensor:
        x = self.narrow(encoded)
        seen = x.gather(1, places.clamp(min=0).unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        patches = torch.where((places >= 0).unsqueeze(-1), seen, self.hidden.to(x.dtype))
        x = torch.cat([x[:, :1], patches], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(x))[:, 1:]


class MaskedImages(Procedure):
    """A masked autoencoder: the encoder sees a random part of an image's patches, a small decoder draws the others.

    L = mean over hidden patches of mean over pixels of (drawn - pixels)^2

    encoder: a `limbeck.models.vit`, trained in place; the decoder (`width`, `depth`, `heads`) is thrown away. ratio: the share of
    patches that are hidden, drawn anew for each image in each step. normalize: a patch's pixels minus their mean, over their
    deviation. Examples of weight 0 do not count. Raises UsageError for an encoder that is no ViT, and for a ratio that hides
    no patch or all of them.
    Source: He et al., "Masked Autoencoders Are Scalable Vision Learners", 2022, section 3 (ratio 0.75, normalized pixels).
    Deviation: positions are learned in encoder and decoder.
    """

    def __init__(
        self,
        encoder: ViT,
        ratio: float = 0.75,
        width: int = 64,
        depth: int = 1,
        heads: int = 4,
        normalize: bool = True,
    ):
        if not isinstance(encoder, ViT):
            raise UsageError(f"MaskedImages trains a limbeck.models.vit, not a {type(encoder).__name__}")
        count = encoder.positions.shape[1] - 1
        self.visible = count - round(ratio * count)
        if not 0 < self.visible < count:
            raise UsageError(f"MaskedImages: ratio={ratio!r} leaves {self.visible} of {count} patches to be seen")
        self.ratio, self.normalize = ratio, normalize
        self.patch = encoder.patches.kernel_size[0]
        outputs = encoder.patches.in_channels * self.patch**2
        self.encoder, self.seen = encoder, VisiblePatches(encoder)
        self.decoder = PatchDecoder(encoder.positions.shape[2], count, outputs, width, depth, heads)
        self.modules = {"encoder": self.encoder, "decoder": self.decoder}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.decoder.to(device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        pixel_values = model_inputs(self.encoder, batch)["pixel_values"]
        shown = self.draw(pixel_values)
        value = self.reconstruction(self.drawn(pixel_values, shown), shown, batch)
        return {"main": Loss(value, {"reconstruction": value.detach()})}

    def draw(self, pixel_values: Tensor) -> Tensor:
        """Which patches of each image are shown: (B, visible)."""
        count = self.encoder.positions.shape[1] - 1
        return torch.rand(len(pixel_values), count, device=pixel_values.device).argsort(1)[:, : self.visible]

    def drawn(self, pixel_values: Tensor, shown: Tensor) -> Tensor:
        """The decoder's pixels of all patches (B, patches, pixels) when the patches `shown` (B, visible) are seen."""
        return self.decoded(self.seen(pixel_values, shown), shown)

    def decoded(self, encoded: Tensor, shown: Tensor) -> Tensor:
        """The decoder's pixels of all patches (B, patches, pixels) of encoded ones (B, 1 + visible, width), class token first."""
        order = torch.arange(1, shown.shape[1] + 1, device=shown.device).expand_as(shown)
        count = self.encoder.positions.shape[1] - 1
        places = torch.full((len(shown), count), -1, device=shown.device).scatter(1, shown, order)
        return positions.precise(self.decoder(encoded, places))

    def reconstruction(self, drawn: Tensor, shown: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The mean squared error of the hidden patches' pixels; drawn (B, patches, pixels), of images of weight 0 nothing."""
        squared = (drawn - self.targets(batch["pixel_values"])).square().mean(-1)
        hidden = torch.ones_like(squared).scatter(1, shown, 0.0)
        weights = batch.get("sample_weight")
        return positions.mean(squared, hidden if weights is None else hidden * weights.unsqueeze(1))

    def targets(self, pixel_values: Tensor) -> Tensor:
        """The pixels of all patches: (B, patches, channels x patch x patch)."""
        patches = F.unfold(positions.precise(pixel_values), self.patch, stride=self.patch).transpose(1, 2)
        if not self.normalize:
            return patches
        mean, variance = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()

    def model(self) -> None:
        """Nothing is evaluated on the way: there are no logits."""

    def describe(self) -> Any:
        return super().describe() | {"ratio": self.ratio, "normalize": self.normalize}
