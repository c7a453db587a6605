"""Sentence embedding, judged by retrieval: encode queries and documents, rank by cosine, nDCG@10."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.datasets.collections import Collection, load_collection
from limbeck.datasets.passages import SOURCES, documents, passages
from limbeck.datasets.tokenize import load_tokenizer, padding_token
from limbeck.datasets.words import checked_shares, ordinary_tokens, replace_words
from limbeck.errors import DataError, UsageError
from limbeck.files import digest
from limbeck.models.sentence_encoder import resolve_folder
from limbeck.signals import first_tensor
from limbeck.tasks.base import Forward, Task, generator, subset

WINDOW = 64  # batches of a window share the examples that are sorted by length
DISTRACTOR_CHARACTERS = 200


def ndcg(ranked: Sequence[float], gains: Sequence[float], cutoff: int = 10) -> float:
    """Normalized discounted cumulative gain of one query.

    nDCG@k = sum_{i<=k} g_i / log2(i + 1)  /  the same sum over the gains in the best order

    ranked: the gain of each document in the order of the ranking, the first `cutoff` at least. gains: all gains of the query.
    The gain is the graded score itself, as trec_eval's ndcg_cut has it (not 2^g - 1). Raises UsageError without a gain.
    """
    best = np.sort(np.asarray(gains, float))[::-1][:cutoff]
    if not best.size or best[0] <= 0:
        raise UsageError("nDCG is not defined for a query without a relevant document")
    found = np.asarray(ranked, float)[:cutoff]
    discounts = np.log2(np.arange(2, cutoff + 2))
    return float((found / discounts[: found.size]).sum() / (best / discounts[: best.size]).sum())


def rank(scores: Tensor, excluded: frozenset[int], count: int) -> list[int]:
    """The `count` best documents of one query, best first; equal scores in document order. scores (documents,)."""
    scores = scores.clone()
    if excluded:
        scores[list(excluded)] = -torch.inf
    order = torch.argsort(scores, descending=True, stable=True)[: min(count, len(scores) - len(excluded))]
    return order.tolist()


def _by_length(tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same texts, the shortest first."""
    order = np.argsort(np.diff(starts), kind="stable")
    rows = [tokens[starts[i] : starts[i + 1]] for i in order]
    return np.concatenate(rows), np.cumsum([0, *map(len, rows)])


class Retrieval(Task):
    """Train: unlabelled passages. Validation and test: retrieval collections.

    dataset: the collection of the test split, in any layout of `limbeck.datasets.collections`.
    tokenizer: a sentence-transformers or transformers folder (also "package:NAME/FOLDER") or hub name.
    texts: collections whose train passages are the train split; see `limbeck.datasets.passages`, or a data set with a text
        column, or "docstrings:NAME", the prose of an installed Python package. None of them may be the test collection.
    validation: the collection of the validation split, {dataset, config}; passages of the validation splits of `texts` are
        added to its documents as distractors.
    length: tokens per text at most.
    replace_words: the augmentation. A train passage draws one of these shares, each epoch anew, and that share of its tokens is replaced
        by ones drawn uniformly from the vocabulary: [0, 0.15, 0.3, 0.6] leaves a quarter of the passages as they are.
        So the student meets words that the texts hardly hold; see `limbeck.datasets.words`. Empty: no augmentation.

    Train batches: input_ids and attention_mask int64 (B, L), index. Padding is saved: the train split is sorted by length, and with a
    seed, texts of similar length go together. Batches of validation and test hold the queries, then the documents. There are no labels: distil with an
    objective on embeddings. Metrics: ndcg@10 (graded gains), mrr@10, recall@100; ranked by cosine.
    """

    name = "retrieval"
    metric = "ndcg@10"
    inputs = ("input_ids", "attention_mask")

    def __init__(
        self,
        dataset: str = "cranfield",
        *,
        tokenizer: str,
        texts: Sequence[str] = tuple(SOURCES),
        validation: Mapping[str, str] | str | None = None,
        length: int = 256,
        replace_words: Sequence[float] = (),
    ):
        if isinstance(length, bool) or not isinstance(length, int) or length < 3:
            raise UsageError(f"length must be a whole number of at least 3 tokens, not {length!r}")
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        validation = {"dataset": "xquad", "config": "xquad.en"} if validation is None else validation
        validation = {"dataset": validation} if isinstance(validation, str) else dict(validation)
        if extra := set(validation) - {"dataset", "config"}:
            raise UsageError(f"validation may hold dataset and config, not {sorted(extra)}")
        if not texts or dataset in texts or dataset == validation.get("dataset"):
            raise UsageError(
                f"texts {list(texts)} and validation {validation} must name data sets other than the test collection {dataset!r}"
            )
        self.dataset, self.length = dataset, length
        train = passages(text for name in texts for text in documents(name, "train"))
        held = passages(text for name in texts for text in documents(name, "validation"))
        held = [text for text in held if len(text) >= DISTRACTOR_CHARACTERS]
        collections = {
            "validation": load_collection(validation["dataset"], validation.get("config")).with_distractors(held),
            "test": load_collection(dataset),
        }
        self._prepare(load_tokenizer(str(resolve_folder(tokenizer))), train, collections, replace_words)

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        train: Sequence[str],
        validation: Collection,
        test: Collection,
        length: int = 256,
        replace_words: Sequence[float] = (),
    ):
        """A task from one's own texts and collections, and a transformers tokenizer."""
        task = cls.__new__(cls)
        task.dataset, task.length = test.name, length
        task._prepare(tokenizer, list(train), {"validation": validation, "test": test}, replace_words)
        return task

    def _prepare(
        self, tokenizer: Any, train: list[str], collections: dict[str, Collection], shares: Sequence[float]
    ) -> None:
        if not train:
            raise DataError(f"task {self.name!r} has no texts to train on")
        self.tokenizer, self.padding = tokenizer, padding_token(tokenizer)
        self.collections = collections
        self.shares = torch.tensor(checked_shares(shares), dtype=torch.float64)
        self.ordinary = ordinary_tokens(tokenizer)
        if len(self.shares):
            self.augmentation = f"replace words {self.shares.tolist()}"
        self._rows = {"train": _by_length(*self._encode(train))}
        for split, found in collections.items():
            self._rows[split] = self._encode([*found.queries, *found.documents])

    def _encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """All tokens one after the other, and where each text starts: (tokens,) and (N + 1,)."""
        rows = self.tokenizer(texts, truncation=True, max_length=self.length, verbose=False)["input_ids"]
        starts = np.cumsum([0, *map(len, rows)])
        return np.concatenate([np.asarray(row, np.int32) for row in rows]), starts

    def size(self, split: str) -> int:
        self._check_split(split)
        return len(self._rows[split][1]) - 1

    def lengths(self, split: str) -> Tensor:
        """Tokens of every text. (N,)"""
        self._check_split(split)
        return torch.from_numpy(np.diff(self._rows[split][1]))

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        tokens, starts = self._rows[split]
        rows = [torch.from_numpy(tokens[starts[i] : starts[i + 1]]).long() for i in index.tolist()]
        longest = min(self.length, -(-max(map(len, rows)) // 8) * 8)
        ids = torch.full((len(rows), longest), self.padding)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)], mask[at, : len(row)] = row, 1
        if augment is not None:
            shares = self.shares[torch.randint(len(self.shares), (len(rows),), generator=augment)]
            ids = replace_words(ids, self.ordinary, shares, augment)
        return {"input_ids": ids, "attention_mask": mask}

    def _iterate(self, split, batch_size, seed, epoch, augment, limit, skip) -> Iterator[dict[str, Tensor]]:
        order = subset(self.size(split), limit)
        if seed is not None:
            order = self._bucketed(order, self.lengths(split), batch_size, generator(seed, epoch, "order"))
        for number in range(skip, -(-len(order) // batch_size)):
            index = order[number * batch_size : (number + 1) * batch_size]
            if augment and len(self.shares):
                draws = generator(seed, epoch, "augment", number)
                yield {**self._examples(split, index, draws), "index": index, "epoch": epoch}
            else:
                yield {**self._examples(split, index, None), "index": index}

    @staticmethod
    def _bucketed(order: Tensor, lengths: Tensor, batch_size: int, draws: torch.Generator) -> Tensor:
        """A random order in which the examples of a batch have similar length; batches follow in random order."""
        order = order[torch.randperm(len(order), generator=draws)]
        pieces = []
        for window in order.split(batch_size * WINDOW):
            pieces += window[torch.argsort(lengths[window], stable=True)].split(batch_size)
        short = [piece for piece in pieces if len(piece) < batch_size]  # at most one: it has to be the last
        whole = [piece for piece in pieces if len(piece) == batch_size]
        return torch.cat([whole[i] for i in torch.randperm(len(whole), generator=draws).tolist()] + short)

    def loss(self, logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
        raise UsageError(
            "the retrieval task has no labels and no loss of its own: distil with an objective on embeddings"
        )

    def encode(self, forward: Forward, split: str, index: Tensor, batch_size: int = 64) -> Tensor:
        """L2-normalized float32 embeddings (len(index), D) of the texts at `index`, computed in batches of similar length."""
        order = index[torch.argsort(self.lengths(split)[index], stable=True)]
        with torch.no_grad():
            found = [
                first_tensor(forward({**self._examples(split, part, None), "index": part})).detach().float().cpu()
                for part in order.split(batch_size)
            ]
        made = torch.cat(found)
        if made.ndim != 2 or len(made) != len(index):
            raise UsageError(
                f"an encoder must return one embedding (B, D) per text; this one returned {tuple(made.shape)}"
            )
        made = F.normalize(made, dim=-1)
        return made[torch.argsort(torch.argsort(self.lengths(split)[index], stable=True))]

    def evaluate(
        self, forward: Forward, split: str = "validation", batch_size: int = 64, limit: int | None = None
    ) -> dict[str, float]:
        """Metrics over the queries; `limit` uses only that many of them, evenly spaced, and always all documents."""
        self._check_split(split)
        if split not in self.collections:
            raise DataError(f"split {split!r} of the retrieval task has no queries: evaluate on validation or test")
        found = self.collections[split]
        queries = subset(len(found.queries), limit)
        texts = torch.arange(len(found.queries), self.size(split))
        both = self.encode(forward, split, torch.cat([queries, texts]), batch_size)
        scores = both[: len(queries)] @ both[len(queries) :].T
        totals = np.zeros(3)
        for row, query in zip(scores, queries.tolist()):
            gains = found.gains[query]
            order = rank(row, found.excluded[query], 100)
            first = next((place for place, at in enumerate(order[:10], 1) if at in gains), None)
            totals += (
                ndcg([gains.get(at, 0.0) for at in order], list(gains.values())),
                1 / first if first else 0.0,
                sum(at in gains for at in order) / len(gains),
            )
        return dict(zip(("ndcg@10", "mrr@10", "recall@100"), (totals / len(queries)).tolist()))

    def example(self, batch_size: int = 1) -> dict[str, Tensor]:
        """Example inputs of full length without padding: train texts joined, each row between its first and last token."""
        tokens, starts = self._rows["train"]
        rows, at = [], 0
        for _ in range(batch_size):
            row: list[int] = []
            while len(row) < self.length - 1:
                text = tokens[starts[at % self.size("train")] : starts[at % self.size("train") + 1]].tolist()
                row, at = row + (text[1:-1] if row else text[:-1]), at + 1
            rows.append([*row[: self.length - 1], int(tokens[starts[1] - 1])])
        ids = torch.tensor(rows)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _content(self) -> Iterator[Any]:
        yield {"task": self.name, "length": self.length, "vocabulary": digest(self.tokenizer.get_vocab())}
        for split in self.splits():
            yield from (split, *(torch.from_numpy(part) for part in self._rows[split]))
            if split in self.collections:
                found = self.collections[split]
                yield [[[at, gain] for at, gain in sorted(gains.items())] for gains in found.gains]
                yield [sorted(excluded) for excluded in found.excluded]
