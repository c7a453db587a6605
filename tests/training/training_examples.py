"""A tiny task and models that the training tests share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from limbeck.files import digest
from limbeck.training import Trainer, TrainingConfig


class TinyTask:
    """Random images of three classes; batches are a pure function of (seed, epoch, position)."""

    name, metric, better = "tiny", "accuracy", "higher"
    classes = ("a", "b", "c")
    inputs = ("pixel_values",)
    augmentation = "noise 0.1"

    def __init__(self, examples: int = 24, shape=(2, 4, 4), seed: int = 7):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(examples) % 3
        centres = torch.randn(3, *shape, generator=generator)
        self.images = centres[self.labels] + 0.5 * torch.randn(examples, *shape, generator=generator)
        self.evaluated = 0

    def splits(self):
        return ("train", "validation", "test")

    def size(self, split):
        return len(self.labels)

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        count = min(len(self.labels), limit or len(self.labels))
        generator = torch.Generator().manual_seed(hash((seed or 0, epoch)) % 2**31)
        order = torch.randperm(count, generator=generator) if seed is not None else torch.arange(count)
        noise = 0.1 * torch.randn(count, *self.images.shape[1:], generator=generator)
        for start in range(skip * batch_size, count, batch_size):
            index = order[start : start + batch_size]
            images = self.images[index]
            if augment:
                images = images + noise[start : start + batch_size]
            yield {"pixel_values": images, "labels": self.labels[index], "index": index}

    def loss(self, logits, batch):
        return functional.cross_entropy(logits, batch["labels"])

    def evaluate(self, forward, split="validation", batch_size=256, limit=None):
        self.evaluated += 1
        right, total, loss = 0, 0, 0.0
        for batch in self.batches(split, batch_size):
            logits = forward(batch)
            right += int((logits.argmax(-1) == batch["labels"]).sum())
            loss += float(functional.cross_entropy(logits, batch["labels"], reduction="sum"))
            total += len(logits)
        return {"accuracy": right / total, "loss": loss / total}

    def example(self, batch_size=1):
        return {"pixel_values": self.images[:batch_size]}

    def digest(self):
        return digest(self.images.flatten().tolist()[:8])


def tiny_model(seed: int = 0, dropout: float = 0.2, norm: bool = True) -> nn.Module:
    """A convolution, a normalization, dropout and a classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 4, 3, padding=1)]
        if norm:
            layers.append(nn.BatchNorm2d(4))
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3))


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    left, right = weights(first), weights(second)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def train(procedure, task, seed=0, folder=None, trackers=(), **config):
    config = TrainingConfig(**{"steps": 6, "batch_size": 8, **config})
    return Trainer(config, folder, seed, progress=False, trackers=trackers).run(procedure, task)
