"""Language modelling: predict the next token of running text.

One convention: labels are aligned with the logits. In a block of `length` tokens, labels[t] = input_ids[t + 1] is what
logits[t] must predict, so no one shifts anything again; positions with label -100 do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.datasets.load import column, load_splits
from limbeck.datasets.tokenize import KINDS, load_tokenizer, padding_token, text_column, train_tokenizer
from limbeck.errors import DataError, UsageError
from limbeck.files import digest
from limbeck.signals import first_tensor
from limbeck.tasks.base import IGNORED, Forward, Task, token_losses


class LanguageModelling(Task):
    """Running text cut into blocks of `length` tokens that follow each other without gap or overlap.

    Every token of a split but its first is predicted exactly once. The last block is filled up with padding whose labels
    are -100.

    dataset: a name or folder that `limbeck.datasets.load` finds: "tinyshakespeare", "wikitext2", "web_text" (with
        config "c4_demo" or "wiki_demo"), one's own. config, splits: see there. text: the column, where it is not clear; or several, such as
        ("question", "answer"): the text of a row is then theirs, joined by `separator`.
    holdout: the share of train, its end, that becomes validation where the data set has none.
    tokenizer: "characters", "bpe" (of `vocabulary` tokens), trained on the train split, or a
        transformers folder or hub name. `self.tokenizer` is a transformers tokenizer.
    separator: put between two rows (and two columns) where the first is not empty and does not end with it.

    Batches: input_ids int64 (B, length), labels (B, length), index. Metrics: perplexity = exp(mean negative log-likelihood per
    token), loss. Perplexities of different tokenizers do not compare.
    """

    name = "language_modelling"
    metric = "perplexity"
    better = "lower"
    inputs = ("input_ids",)

    def __init__(
        self,
        dataset: str = "tinyshakespeare",
        *,
        config: str | None = None,
        splits: Mapping[str, str] | None = None,
        text: str | Sequence[str] | None = None,
        holdout: float = 0.1,
        tokenizer: str = "characters",
        vocabulary: int = 4096,
        length: int = 128,
        separator: str = "\n",
    ):
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise UsageError(f"length must be a whole number of at least 1 token, not {length!r}")
        if not 0 < holdout < 1:
            raise UsageError(f"holdout must lie between 0 and 1, not {holdout!r}")
        self.dataset, self.length = dataset, length
        found = load_splits(dataset, config, splits)
        given = [text] if text is None or isinstance(text, str) else list(text)
        if not given:
            raise UsageError("text=[]: name the column of the text, or several")
        columns = [column(found["train"], dataset, "text", name, ("text",), "Value") for name in given]
        pieces = {}
        for split, rows in found.items():
            texts = [text_column(rows, dataset, split, name) for name in columns]
            pieces[split] = _separated([text for row in zip(*texts) for text in row], separator)
        if "validation" not in pieces:
            pieces |= _end(pieces["train"], holdout)
        trained = tokenizer in KINDS
        self.tokenizer = (
            train_tokenizer(pieces["train"], tokenizer, vocabulary) if trained else load_tokenizer(tokenizer)
        )
        self.vocabulary_size = len(self.tokenizer)
        self.padding = padding_token(self.tokenizer)
        self._data = {split: self._encode(pieces[split], split) for split in self.splits()}

    def _encode(self, pieces: list[str], split: str) -> Tensor:
        rows = self.tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]
        tokens = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
        if len(tokens) < 2:
            raise DataError(
                f"split {split!r} of data set {self.dataset!r} has {len(tokens)} tokens: nothing to predict"
            )
        return tokens

    def size(self, split: str) -> int:
        self._check_split(split)
        return -(-(len(self._data[split]) - 1) // self.length)

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        tokens = self._data[split]
        position = index[:, None] * self.length + torch.arange(self.length + 1)
        inside = position < len(tokens)
        block = torch.where(inside, tokens[position.clamp_max(len(tokens) - 1)].long(), self.padding)
        labels = torch.where(inside, block, IGNORED)[:, 1:]
        return {"input_ids": block[:, :-1], "labels": labels}

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 256, limit: int | None = None
    ) -> dict[str, float]:
        total, count = 0.0, 0.0
        with torch.no_grad():
            for batch in self.batches(split, batch_size, limit=limit):
                logits = first_tensor(forward(batch)).detach()
                if logits.dim() != 3 or logits.shape[-1] < self.vocabulary_size:
                    raise UsageError(
                        f"the model returned {tuple(logits.shape)}; language modelling with this tokenizer needs "
                        f"(batch, length, {self.vocabulary_size}): build it with vocabulary={self.vocabulary_size}"
                    )
                losses, counts = token_losses(logits, batch["labels"].to(logits.device))
                total += losses.double().sum().item()
                count += counts.double().sum().item()
        loss = total / count
        return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}

    def _content(self) -> Iterator[Any]:
        vocabulary = digest(self.tokenizer.get_vocab())
        yield {"task": self.name, "length": self.length, "vocabulary": vocabulary, "padding": self.padding}
        for split in self.splits():
            yield from (split, self._data[split])


def _separated(texts: list[str], separator: str) -> list[str]:
    """The texts, each but the last followed by the separator where it is not empty and does not end with it."""
    ends = [bool(t) and bool(separator) and not t.endswith(separator) for t in texts[:-1]] + [False]
    return [t + separator if end else t for t, end in zip(texts, ends)]


def _end(pieces: list[str], share: float) -> dict[str, list[str]]:
    """Cut running text in two: the last `share` of its characters becomes validation."""
    text = "".join(pieces)
    cut = len(text) - max(1, round(len(text) * share))
    return {"train": [text[:cut]], "validation": [text[cut:]]}
