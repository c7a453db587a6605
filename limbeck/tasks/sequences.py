"""Sequence to sequence: read a source, write a target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import DataError, UsageError
from limbeck.signals import first_tensor
from limbeck.tasks.base import IGNORED, SPLITS, Forward, Task, token_losses


class SequenceToSequence(Task):
    """Pairs of token sequences in memory.

    splits: train, validation and test, each (sources (N, S), targets (N, D)) of whole numbers, rows padded on the right with
    `padding`. start: the token that the decoder reads before the first target.

    Batches: input_ids (B, S), attention_mask (B, S) where any source is padded, decoder_input_ids (B, D) = start and the targets but
    the last, labels (B, D) with -100 for padding, index. Metrics: loss (mean negative log-likelihood per target token),
    perplexity, accuracy (tokens that are the likeliest, given the true ones before).
    """

    name = "sequence_to_sequence"
    metric = "loss"
    better = "lower"

    def __init__(
        self,
        splits: Mapping[str, tuple[Tensor, Tensor]],
        vocabulary_size: int,
        *,
        padding: int,
        start: int,
        dataset: str = "custom",
    ):
        if set(splits) != set(SPLITS):
            raise DataError(f"splits must be {', '.join(SPLITS)}, not {', '.join(splits)}")
        for split, (sources, targets) in splits.items():
            if len(sources) != len(targets) or not len(sources):
                raise DataError(f"split {split!r} has {len(sources)} sources and {len(targets)} targets")
            if max(int(sources.max()), int(targets.max()), start, padding) >= vocabulary_size:
                raise UsageError(f"split {split!r} has tokens outside the vocabulary of {vocabulary_size}")
        self._data = {split: (a.int(), b.int()) for split, (a, b) in splits.items()}
        self.vocabulary_size, self.padding, self.start, self.dataset = vocabulary_size, padding, start, dataset
        self._padded = any(bool((sources == padding).any()) for sources, _ in splits.values())
        self.inputs = ("input_ids", "decoder_input_ids", *(("attention_mask",) if self._padded else ()))

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._data[split][0])

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        source, target = (values[index].long() for values in self._data[split])
        before = torch.cat([torch.full_like(target[:, :1], self.start), target[:, :-1]], 1)
        batch = {"input_ids": source, "decoder_input_ids": before}
        if self._padded:
            batch["attention_mask"] = (source != self.padding).long()
        return {**batch, "labels": target.masked_fill(target == self.padding, IGNORED)}

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        total, right, count = 0.0, 0.0, 0.0
        with torch.no_grad():
            for batch in self.batches(split, batch_size, limit=limit):
                logits = first_tensor(forward(batch)).detach()
                labels = batch["labels"].to(logits.device)
                losses, counts = token_losses(logits, labels)
                total += losses.double().sum().item()
                right += ((logits.argmax(-1) == labels) & (counts > 0)).sum().item()
                count += counts.double().sum().item()
        loss = total / count
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": right / count}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "vocabulary": self.vocabulary_size, "padding": self.padding, "start": self.start}
        for split in SPLITS:
            yield from (split, *self._data[split])
