"""Images as sentences: handwritten digits cut into patches, each the number of its nearest code, for language models to write.

28 x 28 pixels -> 7 x 7 patches -> 49 numbers of a codebook of `vocabulary` patches;  input: the digit's class, then the numbers
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.beds.language import STUDENT, LanguageBed
from limbeck.beds.vq import Pixels
from limbeck.codecs.vector_quantization import kmeans, nearest
from limbeck.models.gpt import GPT, gpt
from limbeck.tasks.base import SPLITS, token_losses
from limbeck.tasks.custom import CustomTask

PATCH, CLASSES, SAMPLED = 4, 10, 20000


@dataclass(frozen=True)
class VisualTokens(LanguageBed):
    """A `LanguageBed` whose text is MNIST: a model says each image's `length` codes row by row, given its class.

    vocabulary: codes, found by k-means on patches of train images; ten more tokens name the classes and are never predicted.
    train: images to learn from. blocks: images of a split that are measured.
    """

    dataset: str = "mnist"
    tokenizer: str = "patches"
    vocabulary: int = 64
    length: int = 49
    blocks: int = 500
    batch_size: int = 32
    train: int = 8000

    @property
    def task(self) -> CustomTask:
        return _task(self.train, self.blocks, self.vocabulary)

    def model(self, **sizes: Any) -> GPT:
        return gpt(self.vocabulary + CLASSES, self.length, **{**STUDENT, **sizes})


def patches(images: Tensor) -> Tensor:
    """Grey images in 0..1 (N, 1, H, W) as flat patches in reading order: (N, H W / 16, 16)."""
    return F.unfold(images, PATCH, stride=PATCH).transpose(1, 2)


def sentence(codes: Tensor, labels: Tensor, vocabulary: int) -> dict[str, Tensor]:
    """Codes (N, L) and classes (N,) as what a language model reads and is to say: input_ids and labels, both (N, L)."""
    first = (vocabulary + labels)[:, None]
    return {"input_ids": torch.cat([first, codes[:, :-1]], 1), "labels": codes}


def perplexity(logits: Tensor, labels: Tensor) -> float:
    """exp of the mean negative log-likelihood per token."""
    losses, counts = token_losses(logits, labels)
    return math.exp(float(losses.sum() / counts.sum()))


@functools.lru_cache(maxsize=4)
def _task(train: int, measured: int, vocabulary: int) -> CustomTask:
    pixels = Pixels("mnist", train, measured)
    cut = {split: patches(pixels.images(split).float() / 255) for split in SPLITS}
    draw = torch.Generator().manual_seed(0)
    flat = cut["train"].flatten(0, 1)
    book = kmeans(flat[torch.randperm(len(flat), generator=draw)[:SAMPLED]], vocabulary, generator=draw)
    splits = {
        split: sentence(
            nearest(found.reshape(-1, 1, PATCH**2), book[None]).view(found.shape[:2]), pixels.labels(split), vocabulary
        )
        for split, found in cut.items()
    }
    settings = {"metric": perplexity, "metric_name": "perplexity", "better": "lower"}
    version = f"{pixels.digest()} {vocabulary}"
    return CustomTask(splits, inputs=("input_ids",), version=version, name="mnist patches", **settings)


DIGIT_TOKENS = VisualTokens(expected=(2.0, 8.0))
