"""Images drawn from a network alone, kept for all arms of a seed, and images as the data that a plan calibrates on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from limbeck.datasets import BatchNormMatching, GeneratedSet, SyntheticSet, noise_images
from limbeck.experiments.run import Run
from limbeck.tasks import CustomTask
from limbeck.training import TrainingConfig


def as_task(images: Tensor) -> CustomTask:
    """Images without labels, as the data that a plan calibrates on."""
    split = (images, torch.zeros(len(images), dtype=torch.long))
    return CustomTask(dict.fromkeys(("train", "validation", "test"), split), classes=10, version="of this run")


def drawn(
    run: Run,
    network: nn.Module,
    shape: tuple[int, ...],
    count: int,
    steps: int,
    rate: float,
    generator: dict[str, Any] | None = None,
) -> Tensor:
    """`count` images that match the network's batch-norm statistics; made once for all arms of a seed. Not an arm's cost.

    rate: of Adam on the pixels, or with `generator`, the settings of a `GeneratedSet`, on its weights; then convolutions swing.
    """
    state = {name: float(value.double().abs().sum()) for name, value in network.state_dict().items()}
    key: dict[str, Any] = {
        "what": "batch-norm images",
        "network": state,
        "seed": run.seed,
        "steps": steps,
        "version": 1,
    }
    if generator is not None:
        key |= {"generator": generator, "count": count, "rate": rate}

    def make() -> dict[str, Tensor]:
        start = noise_images(count, shape, run.generator("images"))
        images = SyntheticSet(start, torch.zeros(count, dtype=torch.long))
        procedure = BatchNormMatching(images, network)
        if generator is not None:
            images = GeneratedSet(count, shape, **generator)
            procedure = BatchNormMatching(images, network, "input", swing=True)
        config = TrainingConfig(
            steps=steps, batch_size=1, optimizer="adamw", weight_decay=0.0, learning_rate=rate, augment=False
        )
        run.train(procedure, as_task(start[:1]), config, counted=False)
        return {"images": images.images.detach()}

    return run.tensors(key, make)["images"]
