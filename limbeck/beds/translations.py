"""Captions in several languages: a small multilingual encoder, and a task whose labels are in one language only.

The captions of Multi30k in English, German and French, and the French ones once more in another spelling (every letter thirteen places on),
which is a language of its own to whoever reads tokens. The task is what a caption is about; what it is about is told by words of the English one.
"""

from __future__ import annotations

import codecs
import copy
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.beds.pairs import contrast, recall_at_one
from limbeck.datasets.load import load
from limbeck.datasets.tokenize import padding_token, text_column, train_tokenizer
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.models.encoder import Encoder, encoder
from limbeck.models.initialize import unit_variance
from limbeck.objectives import PairedContrast
from limbeck.tasks.custom import CustomTask
from limbeck.training import Supervised, TrainingConfig

TOPICS = {
    "sport": "ball soccer football baseball basketball tennis game race bike bicycle skateboard surf snowboard player team",
    "water": "water beach ocean pool lake river boat swimming",
    "street": "street sidewalk city road car bus",
    "music": "guitar music singing stage band playing instrument",
    "food": "food table restaurant kitchen eating cooking",
}
WORDS = {word: topic for topic, words in TOPICS.items() for word in words.split()}


def topic_of(caption: str) -> str | None:
    """The one topic whose words an English caption has; None for none or several."""
    found = {WORDS[word] for word in re.findall("[a-z]+", caption.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


class SentencePairs(nn.Module):
    """Pairs of texts as the mean states of an encoder: input_ids, attention_mask (B, 2, L) -> (B, 2, width)."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids, mask = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        states, share = self.encoder.states(ids, mask), mask[..., None].float()
        return ((states * share).sum(1) / share.sum(1).clamp_min(1)).unflatten(0, (-1, 2))


@dataclass(frozen=True)
class _Captions:
    ids: dict[str, Tensor]  # language to (captions, L)
    masks: dict[str, Tensor]
    labels: Tensor  # (captions,), -100 where a caption has no topic
    size: int  # of the vocabulary
    special: tuple[int, ...]


@functools.lru_cache(maxsize=2)
def _captions(
    dataset: str, languages: tuple[str, ...], vocabulary: int, length: int, count: int, held: int
) -> _Captions:
    rows, texts = load(dataset)["train"].select(range(count)), {}
    for language in languages:
        spelled, _, column = language.rpartition(" ")
        found = text_column(rows, dataset, "train", column)
        texts[language] = [codecs.encode(text, spelled) for text in found] if spelled else found
    seen = len(rows) - held
    tokenizer = train_tokenizer([t for some in texts.values() for t in some[:seen]], "bpe", vocabulary, framed=True)
    ids, masks = {}, {}
    for language, some in texts.items():
        whole = torch.full((len(some), length), padding_token(tokenizer))
        mask = torch.zeros_like(whole)
        for at, row in enumerate(tokenizer(some, truncation=True, max_length=length, verbose=False)["input_ids"]):
            whole[at, : len(row)], mask[at, : len(row)] = torch.tensor(row), 1
        ids[language], masks[language] = whole, mask
    names = list(TOPICS)
    topics = [topic_of(text) for text in text_column(rows, dataset, "train", "en")]
    labels = torch.tensor([-100 if topic is None else names.index(topic) for topic in topics])
    return _Captions(ids, masks, labels, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)))


@dataclass(frozen=True, kw_only=True)
class TranslationBed(Bed):
    """Captions in several languages, cut to `length` tokens of one byte-pair vocabulary.

    languages: columns of the data set, "rot13 fr" for French respelled. count: captions that are read. held: the last of them are for
    validation and test. labelled: so many captions of the source language have labels. depth, width, heads: of the multilingual encoder.
    embeddings: their deviation at first, beside `unit_variance` of everything else; of 1 they would move too slowly. Steps: of its
    training on pairs of translations; and of one's fine-tuning on labels.

        bed.pairs(languages), bed.texts(languages)    translations; captions without labels, each in one of the languages
        bed.topics(language)                          the task; only in the source language anybody trains on its labels
        bed.multilingual(run)                         the encoder that learnt from translations, from the store
        bed.aligned(run, model, languages, steps)     train an encoder on translations, in place
        bed.measure(run, model, language)             accuracy in a language
    """

    name: str = "captions in four languages"
    dataset: str = "multi30k"
    languages: tuple[str, ...] = ("en", "de", "fr", "rot13 fr")
    source: str = "en"
    vocabulary: int = 6000
    length: int = 20
    count: int = 14000
    held: int = 5000
    labelled: int = 1000
    depth: int = 4
    width: int = 64
    heads: int = 4
    embeddings: float = 0.1
    translating_steps: int = 1000
    tuning_steps: int = 130
    batch_size: int = 32
    learning_rate: float = 4e-3
    expects: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def captions(self) -> _Captions:
        return _captions(self.dataset, self.languages, self.vocabulary, self.length, self.count, self.held)

    def digest(self) -> str:
        return digest({"data": self.topics(self.source).digest(), "settings": self.settings(), "version": 1})

    def _task(self, rows: Mapping[str, Any], name: str, **how: Any) -> CustomTask:
        return CustomTask(rows, inputs=("input_ids", "attention_mask"), name=name, **how)

    def _seen(self) -> int:
        return len(self.captions().labels) - self.held

    def topics(self, language: str) -> CustomTask:
        """What a caption in this language is about."""
        found, seen = self.captions(), self._seen()
        known = (found.labels >= 0).nonzero().flatten()
        train, held = known[known < seen][: self.labelled], known[known >= seen]
        parts = {"train": train, "validation": held[0::2], "test": held[1::2]}
        rows = {split: self._rows(language, at) | {"labels": found.labels[at]} for split, at in parts.items()}
        return self._task(rows, f"topics in {language}", classes=list(TOPICS))

    def _rows(self, language: str, at: Tensor) -> dict[str, Tensor]:
        found = self.captions()
        return {"input_ids": found.ids[language][at], "attention_mask": found.masks[language][at]}

    def texts(self, languages: Sequence[str]) -> CustomTask:
        """Captions without labels: every one in one language, in turn."""
        count = self._seen()
        parts = [self._rows(language, torch.arange(i, count, len(languages))) for i, language in enumerate(languages)]
        rows = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        rows["labels"] = torch.full((len(rows["input_ids"]),), -100)
        held = {key: value[:64] for key, value in rows.items()}
        return self._task({"train": rows, "validation": held, "test": held}, f"captions in {', '.join(languages)}")

    def pairs(self, languages: Sequence[str]) -> CustomTask:
        """Every caption in two of the languages, drawn once."""
        pick = torch.rand(len(self.captions().labels), len(languages), generator=torch.Generator().manual_seed(0))
        first, second = pick.argsort(1)[:, :2].unbind(1)
        stacked = {
            key: torch.stack([getattr(self.captions(), kind)[language] for language in languages], 1)
            for key, kind in (("input_ids", "ids"), ("attention_mask", "masks"))
        }
        every = torch.arange(len(first))
        rows = {key: torch.stack([value[every, first], value[every, second]], 1) for key, value in stacked.items()}
        rows["labels"] = torch.zeros(len(first), dtype=torch.long)
        seen = self._seen()
        cuts = {"train": every[:seen], "validation": every[seen::2][:500], "test": every[seen + 1 :: 2][:500]}
        split = {name: {key: value[cut] for key, value in rows.items()} for name, cut in cuts.items()}
        return self._task(split, "translations", metric=recall_at_one, metric_name="recall@1", loss=contrast)

    def encoder(self, depth: int | None = None) -> Encoder:
        """An untrained encoder; by default as deep as the multilingual one."""
        sizes = {"length": self.length, "depth": depth or self.depth, "width": self.width, "heads": self.heads}
        return unit_variance(encoder(self.captions().size, len(TOPICS), **sizes), self.embeddings)

    def config(self, steps: int, **changes: Any) -> TrainingConfig:
        """The bed's way to train: AdamW, a cosine schedule with warm-up, gradients clipped at 1."""
        settings = {"batch_size": self.batch_size, "learning_rate": self.learning_rate, "weight_decay": 0.01}
        settings |= {"warmup": 0.1, "gradient_clipping": 1.0, "schedule": "cosine"}
        return TrainingConfig(steps=steps, **(settings | changes))

    def aligned(
        self, run: Run, model: Encoder, languages: Sequence[str], steps: int, counted: bool = True, **changes: Any
    ) -> Encoder:
        """Train in place: translations find each other among those of the batch."""
        seed = None if counted else 0
        procedure = Supervised(SentencePairs(model), PairedContrast())
        run.train(procedure, self.pairs(languages), self.config(steps, **changes), seed=seed, counted=counted)
        return model

    def multilingual(self, run: Run) -> Encoder:
        """The encoder of all languages; its head is untrained."""
        key = {"kind": "multilingual encoder", "version": 1, "data": self.pairs(self.languages).digest()}
        key |= {
            "sizes": [self.depth, self.width, self.heads],
            "training": self.config(self.translating_steps).to_json(),
        }

        def train(model: Encoder) -> None:
            self.aligned(run, model, self.languages, self.translating_steps, counted=False)

        return run.trained(key, self.encoder, train)

    def measure(self, run: Run, model: nn.Module, language: str) -> dict[str, float]:
        """Accuracy and the like on the captions of a language, of the run's split."""
        model.eval()
        return self.topics(language).evaluate(
            lambda batch: model(batch["input_ids"], batch["attention_mask"]), run.split
        )

    def reference(self, run: Run) -> dict[str, float]:
        """The multilingual encoder fine-tuned on labels of the source language: accuracy there, and `other`, the mean over the others."""
        model = copy.deepcopy(self.multilingual(run))
        run.train(Supervised(model, self.topics(self.source)), self.topics(self.source), self.config(self.tuning_steps))
        found = {name: self.measure(run, model, name)["accuracy"] for name in self.languages}
        own = found.pop(self.source)
        return {"accuracy": own, "other": sum(found.values()) / len(found)} | {
            f"accuracy in {k}": v for k, v in found.items()
        }


CAPTIONS = TranslationBed(expects={"accuracy": (0.8, 1.0), "other": (0.6, 1.0)})
