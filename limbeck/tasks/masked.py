"""Masked language modelling: predict tokens that were hidden from the text around them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.signals import first_tensor
from limbeck.tasks.base import IGNORED, Forward, Task, generator, token_losses


class MaskedLanguageModelling(Task):
    """The texts of another task, with a share of their tokens to be predicted; labels of that task are not used.

    Of every text round(share * tokens) positions are chosen, at least one, never a special token. Of these, 80 % become
    the mask token, 10 % a random token, and 10 % stay. Training batches (`augment=True`) draw anew in every epoch; all others
    are masked once and for all.

    source: a task whose batches have `input_ids` and whose tokenizer has a mask token, such as `TextClassification`.

    Batches: input_ids and attention_mask int64 (B, L); `masked` (B, M), the positions to be predicted in rising order;
    labels (B, M), their tokens, -100 where a text has fewer than M. A model that takes `masked` returns logits for those
    positions only, see `limbeck.models.encoder.MaskedLanguageModel`. Metrics: perplexity, loss and accuracy of those positions.
    Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019,
    section 3.1. Deviation: exactly round(share * tokens) positions in every text; no next-sentence prediction.
    """

    name = "masked_language_modelling"
    metric = "perplexity"
    better = "lower"
    inputs = ("input_ids", "attention_mask", "masked")

    def __init__(self, source: Task, *, share: float = 0.15):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise UsageError(f"share must lie between 0 and 1, not {share!r}")
        tokenizer = getattr(source, "tokenizer", None)
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise UsageError(f"task {source.name!r} has no tokenizer with a mask token: use TextClassification")
        self.source, self.share, self.dataset = source, float(share), source.dataset
        self.tokenizer, self.vocabulary_size = tokenizer, len(tokenizer)
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        self.augmentation = f"masks of {self.share} drawn in every epoch"
        self._fixed: dict[str, Tensor] = {}

    def describe(self) -> dict[str, Any]:
        return {"class": type(self).__name__, "source": self.source.describe(), "share": self.share}

    def splits(self) -> tuple[str, ...]:
        return self.source.splits()

    def size(self, split: str) -> int:
        return self.source.size(split)

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        batch = self.source._examples(split, index, None)
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        draws = torch.rand(3, *ids.shape, generator=augment) if augment else self._draws(split, index, ids.shape[1])
        mask_token = self.tokenizer.mask_token_id
        return {
            "attention_mask": mask,
            **hidden(ids, mask, draws, self.share, self.special, mask_token, self.vocabulary_size),
        }

    def _draws(self, split: str, index: Tensor, length: int) -> Tensor:
        """The numbers that decide what is masked outside training: one row per example, whatever the batch. (3, B, L)"""
        if split not in self._fixed:
            full = self.source.example()["input_ids"].shape[1]
            self._fixed[split] = torch.rand(self.size(split), 3, full, generator=generator("masks", split))
        return self._fixed[split][index, :, :length].transpose(0, 1)

    def example(self, batch_size: int = 1) -> dict[str, Tensor]:
        return {key: value for key, value in super().example(batch_size).items() if key in self.inputs}

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        total, right, count = 0.0, 0.0, 0.0
        with torch.no_grad():
            for batch in self.batches(split, batch_size, limit=limit):
                logits, labels = first_tensor(forward(batch)).detach().cpu(), batch["labels"]
                if logits.shape != (*labels.shape, self.vocabulary_size):
                    raise UsageError(
                        f"the model returned {tuple(logits.shape)} for {tuple(labels.shape)} masked positions and "
                        f"{self.vocabulary_size} tokens: use limbeck.models.encoder.MaskedLanguageModel"
                    )
                losses, counts = token_losses(logits, labels)
                total += losses.double().sum().item()
                right += (logits.argmax(-1) == labels).double().sum().item()
                count += counts.double().sum().item()
        loss = total / count
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "accuracy": right / count}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "share": self.share, "source": self.source.digest()}


def hidden(
    ids: Tensor, attention_mask: Tensor, draws: Tensor, share: float, special: Tensor, mask_token: int, vocabulary: int
) -> Mapping[str, Tensor]:
    """Hide tokens: `input_ids` (B, L) with changes, `masked` (B, M) positions, `labels` (B, M) their tokens or -100.

    draws: numbers in [0, 1) (3, B, L): which positions (the smallest of those that may be chosen), what becomes of them
    (below 0.8 the mask token, below 0.9 a random token, else nothing), and which random token from `special.max() + 1` to
    `vocabulary - 1`.
    """
    order, fate, token = draws
    free = attention_mask.bool() & ~torch.isin(ids, special)
    counts = (free.sum(1) * share).round().long().clamp_min(1).minimum(free.sum(1))
    most = max(1, int(counts.max()))
    chosen = order.masked_fill(~free, 2.0).argsort(1)[:, :most]
    chosen = chosen.masked_fill(torch.arange(most) >= counts[:, None], ids.shape[1]).sort(1).values
    counted = chosen < ids.shape[1]
    chosen = chosen.masked_fill(~counted, 0)
    labels = ids.gather(1, chosen)
    fate = fate.gather(1, chosen)
    first = int(special.max()) + 1
    random = first + (token.gather(1, chosen) * (vocabulary - first)).long()
    new = torch.where(fate < 0.8, mask_token, torch.where(fate < 0.9, random, labels))
    changed = ids.clone()
    rows = torch.arange(len(ids))[:, None].expand_as(chosen)[counted]
    changed[rows, chosen[counted]] = new[counted]
    return {"input_ids": changed, "masked": chosen, "labels": labels.masked_fill(~counted, IGNORED)}


def unhidden(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of `MaskedLanguageModelling` with its tokens as they were, for what reads the whole text; `masked` and labels are left out.

    Shapes: input_ids (B, L), masked (B, M), labels (B, M), -100 where a text has fewer than M -> input_ids (B, L).
    """
    ids, place, labels = batch["input_ids"], batch["masked"], batch["labels"]
    counted = labels != IGNORED
    rows = torch.arange(len(ids), device=ids.device)[:, None].expand_as(place)[counted]
    restored = ids.clone()
    restored[rows, place[counted]] = labels[counted]
    return {name: value for name, value in batch.items() if name not in ("masked", "labels")} | {"input_ids": restored}
