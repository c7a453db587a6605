"""Data, networks and settings of the tests of cached teachers."""

import math

import torch
from torch import nn

from limbeck.files import digest

ANY = frozenset({"logits"})


class Views:
    """A task in miniature: inputs (n, 6), noise that is a function of (seed, epoch, batch number) as augmentation."""

    augmentation = "noise 0.5"

    def __init__(self, n=23, salt=0, augmentation="noise 0.5"):
        self.x = torch.randn(n, 6, generator=torch.Generator().manual_seed(salt))
        self.augmentation = augmentation
        self.served = 0

    def size(self, split):
        return len(self.x)

    def digest(self):
        return digest(self.x.tolist())

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        n = min(len(self.x), limit or len(self.x))
        draw = torch.Generator().manual_seed(1000 * (seed or 0) + epoch)
        order = torch.arange(n) if seed is None else torch.randperm(n, generator=draw)
        for number in range(skip, math.ceil(n / batch_size)):
            index = order[number * batch_size : (number + 1) * batch_size]
            x = self.x[index]
            if augment:
                x = x + 0.5 * torch.randn(
                    x.shape, generator=torch.Generator().manual_seed(10**6 * seed + 1000 * epoch + number)
                )
            self.served += 1
            yield {"pixel_values": x, "labels": index % 3, "index": index}


class Tokens(Views):
    """Sequences of two lengths, so that shards have to fill up."""

    augmentation = "none"

    def __init__(self):
        super().__init__(n=8, augmentation="none")
        self.ids = torch.randint(1, 50, (8, 7), generator=torch.Generator().manual_seed(3))

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        for number in range(skip, 4):
            index = torch.arange(2 * number, 2 * number + 2)
            yield {"input_ids": self.ids[index, : 4 + number], "index": index}


class Reader(nn.Module):
    """Token scores."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 6), nn.Linear(6, 300)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def network(classes=9, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, classes))


def training(task, epochs, seed=0, batch_size=5, augment=True):
    for epoch in range(epochs):
        for batch in task.batches("train", batch_size, seed=seed, epoch=epoch, augment=augment):
            yield batch | {"epoch": epoch}


SETTINGS = {"passes": 3, "seed": 7, "batch_size": 5, "progress": False, "shard_rows": 10}


def same(settings):
    return {k: v for k, v in settings.items() if k in ("seed", "batch_size", "augment", "limit")}
