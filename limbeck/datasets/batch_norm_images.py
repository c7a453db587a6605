"""Images from a network alone: pixels that give every batch normalization the statistics it has stored.

    min over x   sum_l |mean_l(x) - mu_l|^2 + |std_l(x) - sigma_l|^2

l runs over the inputs of all batch normalizations, mu and sigma are their running statistics; the image itself counts as one more, with
mean 0 and deviation 1. For calibration and sensitivities where the training data may not be had.
Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020, eq. 3.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.datasets.generated_images import GeneratedSet, swinging
from limbeck.datasets.synthesize import SyntheticSet
from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.signals import LOGITS, Tap
from limbeck.training.procedures import Losses, Procedure, State


def moments(x: Tensor, per_image: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every channel: x (B, C, ...) -> (C,) each over batch and places, or (B, C) per image."""
    x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(-1)
    axes = (2,) if per_image else (0, 2)
    variance = x.var(axes, unbiased=False)
    return x.mean(axes), (variance + 1e-12).sqrt()


def statistics_loss(x: Tensor, mean: Tensor, deviation: Tensor, per_image: bool = False) -> Tensor:
    """|mean(x) - mean|^2 + |std(x) - deviation|^2 over channels; per image: averaged over images. x (B, C, ...), the others (C,)."""
    found, spread = moments(x, per_image)
    return ((found - mean).square() + (spread - deviation).square()).sum(-1).mean()


class BatchNormMatching(Procedure):
    """Move the images of a `SyntheticSet` or `GeneratedSet` until the network's batch normalizations see what they have stored.

    network: copied, in evaluation mode. per_image: statistics of every image over its own places, as in ZeroQ's public code;
    False: of the whole batch, as in its paper; "input": those of the image itself per image, inside the network of the whole batch (Genie).
    swing: strided convolutions see randomly shifted inputs, see `generated_images`. The task's batches are not looked at. Raises
    UsageError for a network without batch normalizations that keep statistics.
    """

    def __init__(
        self,
        images: SyntheticSet | GeneratedSet,
        network: nn.Module,
        per_image: bool | str = False,
        swing: bool = False,
    ):
        if per_image not in (True, False, "input"):
            raise UsageError(f"per_image={per_image!r}: allowed are True, False and 'input'")
        self.modules = {"images": images}
        copied = swinging(network) if swing else copy.deepcopy(network)
        self.network = copied.requires_grad_(False).eval()
        self.per_image, self.swing = per_image, swing
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self.norms = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, kinds) and module.running_mean is not None
        }
        if not self.norms:
            raise UsageError(
                f"{type(network).__name__} has no batch normalization that keeps statistics: images cannot be drawn from it"
            )

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.network.to(device)

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        images = self.modules["images"].images
        with Tap(self.network, {LOGITS, *(f"{path}:input" for path in self.norms)}) as tap:
            signals = tap.run(images)
        own = statistics_loss(images, images.new_zeros(()), images.new_ones(()), bool(self.per_image))
        inside = sum(
            statistics_loss(
                signals[f"{path}:input"],
                norm.running_mean,
                (norm.running_var + norm.eps).sqrt(),
                self.per_image is True,
            )
            for path, norm in self.norms.items()
        )
        return {"main": Loss(own + inside, {"image": own.detach(), "inside": inside.detach()})}

    def model(self) -> None:
        return None

    def describe(self) -> Any:
        return {"procedure": "BatchNormMatching", "per_image": self.per_image, "swing": self.swing}


def noise_images(count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gaussian images (count, *shape) of mean 0 and deviation 1: where the matching begins."""
    return torch.randn(count, *shape, generator=generator)
