"""Text classification on SST-2, AG News or any data set with a text and a label column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.labels import class_labels
from limbeck.datasets.load import column, load_splits
from limbeck.datasets.split import holdout
from limbeck.datasets.tokenize import KINDS, load_tokenizer, padding_token, text_column, train_tokenizer
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.signals import TARGETS
from limbeck.tasks.base import Classification


class TextClassification(Classification):
    """Texts as token ids in memory, cut to `length` tokens.

    dataset: a name or folder that `limbeck.datasets.load` finds: "sst2", "ag_news", one's own; or {split: datasets.Dataset}.
    config, splits, holdout: as in `ImageClassification`. text, label: column names, where they are not clear.
    tokenizer: a transformers folder or hub name, which a pre-trained model needs; or a transformers tokenizer; or "bpe" (of `vocabulary` tokens)
        or "characters", trained on the lower-cased train split. `self.tokenizer` is a transformers tokenizer;
        `limbeck.datasets.tokenize.save_tokenizer` keeps it as JSON.

    Batches: input_ids and attention_mask int64 (B, L), where L is the longest of the batch rounded up to a multiple of 8
    and at most `length`; labels (B,), index. `example` has the full length. There is no augmentation.
    """

    name = "text_classification"
    inputs = ("input_ids", "attention_mask")

    def __init__(
        self,
        dataset: str | Mapping[str, Any] = "sst2",
        *,
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        text: str | None = None,
        label: str | None = None,
        holdout: float = 0.1,
        tokenizer: Any = "bpe",
        vocabulary: int = 4096,
        length: int = 64,
    ):
        if isinstance(length, bool) or not isinstance(length, int) or length < 3:
            raise UsageError(f"length must be a whole number of at least 3 tokens, not {length!r}")
        found = load_splits(dataset, config, splits)
        dataset = dataset if isinstance(dataset, str) else "given"
        self.dataset, self.length = dataset, length
        text = column(found["train"], dataset, "text", text, ("text", "sentence"), "Value")
        label = column(found["train"], dataset, "label", label, ("label", "labels"), "ClassLabel")
        self.classes, labels = class_labels(found, dataset, label)
        texts = {split: text_column(rows, dataset, split, text) for split, rows in found.items()}
        if "validation" not in texts:
            texts, labels = _held_out(texts, labels, holdout)
        trained = tokenizer in KINDS
        self.tokenizer = (
            train_tokenizer(texts["train"], tokenizer, vocabulary, framed=True)
            if trained
            else (load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer)
        )
        self.vocabulary_size = len(self.tokenizer)
        self.padding = padding_token(self.tokenizer)
        self._data = {split: (*self._encode(texts[split]), labels[split]) for split in self.splits()}

    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids (N, length), padded on the right, and their numbers (N,). A text of no tokens gets one of padding."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.length, verbose=False)["input_ids"]
        ids = torch.full((len(rows), self.length), self.padding, dtype=torch.int32)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row, dtype=torch.int32)
        return ids, torch.tensor([max(len(row), 1) for row in rows])

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._data[split][2])

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        ids, lengths, labels = (values[index] for values in self._data[split])
        longest = min(self.length, -(-int(lengths.max()) // 8) * 8)
        return self._padded(ids[:, :longest], lengths, labels)

    @staticmethod
    def _padded(ids: Tensor, lengths: Tensor, labels: Tensor) -> dict[str, Tensor]:
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return {"input_ids": ids.long(), "attention_mask": mask.long(), "labels": labels}

    def example(self, batch_size: int = 1) -> dict[str, Tensor]:
        """The first texts of the train split at full length."""
        index = torch.arange(batch_size) % self.size("train")
        batch = self._padded(*(values[index] for values in self._data["train"]))
        return {key: value for key, value in batch.items() if key not in TARGETS}

    def _content(self) -> Iterator[Any]:
        vocabulary = digest(self.tokenizer.get_vocab())
        yield {"task": self.name, "length": self.length, "vocabulary": vocabulary, "classes": self.classes}
        for split in self.splits():
            yield from (split, *self._data[split])


def _held_out(texts: dict[str, list[str]], labels: dict[str, Tensor], share: float) -> tuple[dict, dict]:
    kept, held = holdout(labels["train"].tolist(), share, "validation")
    parts = {"train": kept, "validation": held}
    return (
        texts | {split: [texts["train"][i] for i in at] for split, at in parts.items()},
        labels | {split: labels["train"][at] for split, at in parts.items()},
    )
