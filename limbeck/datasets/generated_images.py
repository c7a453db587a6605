"""Images that a small generator makes, and convolutions that swing: data drawn from a network alone, with more structure than free pixels.

    x = G(z),   z (images, latent) and the weights of G are both trained;        `BatchNormMatching(GeneratedSet(...), network, swing=True)`

What G cannot make, such as noise of single pixels, is no way to please the network. Strided convolutions see one pixel of several in the same
places all the time; while images are drawn they swing: the input is reflected at its borders by one pixel and cut back at a random place.
Source: Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023 (Genie-D), and the authors' public code.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError


class GeneratedSet(nn.Module):
    """`images` (count, C, H, W) of a generator, one latent vector per image, to be trained like a `SyntheticSet`.

        z -> linear -> (widths[0], H/4, W/4) -> norm, x2, conv -> widths[1] -> norm, leaky ReLU, x2, conv -> C -> tanh -> norm

    latent_rate: how many times faster than the generator the latents move. They are kept as z / latent_rate: an optimizer whose steps do not
    depend on the gradient's size (Adam) then has that many times the rate for z. Normalizations always take the statistics of the
    set, so one set is one batch. Raises UsageError for sizes below 1, one image, and heights or widths that 4 does not divide.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        latent: int = 256,
        widths: tuple[int, int] = (128, 64),
        latent_rate: float = 10.0,
    ):
        super().__init__()
        channels, height, width = shape
        if height % 4 or width % 4 or min(count - 1, channels, height, width, latent, *widths) < 1 or latent_rate <= 0:
            raise UsageError(
                f"GeneratedSet: count={count} (from 2), shape={shape}, latent={latent}, widths={widths}, latent_rate={latent_rate}: all "
                "must be positive, and 4 must divide height and width"
            )
        first, second = widths
        self.latent_rate, self.start = latent_rate, (first, height // 4, width // 4)
        self.latents = nn.Parameter(torch.randn(count, latent) / latent_rate)
        self.linear = nn.Linear(latent, first * height * width // 16)
        self.layers = nn.Sequential(
            _norm(first), nn.Upsample(scale_factor=2), nn.Conv2d(first, second, 3, padding=1),
            _norm(second), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.Conv2d(second, channels, 3, padding=1),
            nn.Tanh(), _norm(channels, affine=False),
        )  # fmt: skip

    @property
    def images(self) -> Tensor:
        return self.layers(self.linear(self.latent_rate * self.latents).unflatten(1, self.start))

    def forward(self) -> Tensor:
        return self.images


def _norm(width: int, affine: bool = True) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, affine=affine, track_running_stats=False)


def swung(x: Tensor, down: int, right: int, reach: int = 1) -> Tensor:
    """x (B, C, H, W) with `reach` reflected pixels on every side, cut back to H x W from row `down` and column `right`; `reach` both: x."""
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    return padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]


class Swinging(nn.Module):
    """A strided convolution whose input swings by up to `reach` pixels, drawn anew at every call."""

    def __init__(self, convolution: nn.Conv2d, reach: int = 1):
        super().__init__()
        self.convolution, self.reach = convolution, reach

    def forward(self, x: Tensor) -> Tensor:
        down, right = torch.randint(0, 2 * self.reach + 1, (2,)).tolist()
        return self.convolution(swung(x, down, right, self.reach))


def swinging(network: nn.Module) -> nn.Module:
    """A copy of the network whose strided convolutions swing. Paths of all other modules stay."""
    network = copy.deepcopy(network)
    strided = [p for p, m in network.named_modules() if isinstance(m, nn.Conv2d) and max(m.stride) > 1]
    for path in strided:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Swinging(network.get_submodule(path)))
    return network
