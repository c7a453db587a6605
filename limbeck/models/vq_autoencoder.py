"""A small convolutional autoencoder with a codebook in its middle.

image --encoder--> (B, width, H/4, W/4) --before--> (B, D, h, w) --codes--> --after--> --decoder--> image
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.codecs.vector_quantization import Quantized, VectorQuantizer
from limbeck.models.layers import check_sizes


class Residual(nn.Module):
    """x + conv1(relu(conv3(relu(x)))).  (B, width, h, w) -> the same"""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x.relu()).relu())


class VQAutoencoder(nn.Module):
    """`forward(pixel_values)` in 0..1 (B, C, H, W), H and W divisible by 4, gives the reconstruction; `latent` what the codes see.

    Modules: encoder, before (1x1), quantizer (`VectorQuantizer`), after (1x1), decoder.
    """

    def __init__(self, channels: int, width: int, code_width: int, codes: int, least_use: float = 0.01):
        super().__init__()
        half = max(width // 2, 1)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, half, 4, 2, 1), nn.ReLU(), nn.Conv2d(half, width, 4, 2, 1), Residual(width), nn.ReLU()
        )
        self.before = nn.Conv2d(width, code_width, 1)
        self.quantizer = VectorQuantizer(codes, code_width, least_use=least_use)
        self.after = nn.Conv2d(code_width, width, 1)
        self.decoder = nn.Sequential(
            Residual(width), nn.ReLU(), nn.ConvTranspose2d(width, half, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(half, channels, 4, 2, 1),
        )  # fmt: skip

    def latent(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, h, w, 1, D), what the codebook quantizes."""
        return self.before(self.encoder(pixel_values)).permute(0, 2, 3, 1).unsqueeze(3)

    def image(self, codes: Tensor) -> Tensor:
        """(B, h, w, 1, D) -> (B, C, H, W)"""
        return self.decoder(self.after(codes.squeeze(3).permute(0, 3, 1, 2)))

    def reconstruct(self, pixel_values: Tensor) -> tuple[Tensor, Quantized]:
        """The reconstruction with its gradient, and what the codebook did."""
        found = self.quantizer(self.latent(pixel_values))
        return self.image(found.values), found

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.reconstruct(pixel_values)[0]

    @torch.no_grad()
    def indices(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> the grid of code numbers (B, h, w)."""
        return self.quantizer.encode(self.latent(pixel_values)).squeeze(-1)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """The grid of code numbers (B, h, w) -> the image in 0..1."""
        return self.image(self.quantizer.decode(indices.unsqueeze(-1))).clamp(0, 1)


def vq_autoencoder(
    channels: int = 1, width: int = 32, code_width: int = 16, codes: int = 256, least_use: float = 0.01
) -> VQAutoencoder:
    """A vector-quantized autoencoder that divides height and width by 4. least_use: of `VectorQuantizer`; the higher, the sooner an unused
    code finds work.

    Source: van den Oord et al., "Neural Discrete Representation Learning", 2017, section 4.1, much smaller. Raises UsageError
    for bad sizes.
    """
    check_sizes("vq_autoencoder", width, 1, 0.0, channels=channels, code_width=code_width, codes=codes)
    arguments = {"channels": channels, "width": width, "code_width": code_width, "codes": codes}
    arguments |= {"least_use": least_use} if least_use != 0.01 else {}
    return with_lineage(VQAutoencoder(**arguments), Factory("limbeck.models.vq_autoencoder:vq_autoencoder", arguments))
