"""Captions in several languages: a small multilingual encoder, and a task whose labels are in one language only.

The captions of Multi30k in English, German and French, and the French ones once more in another spelling (every letter thirteen places on),
which is a language of its own to whoever reads tokens. The task is what a caption is about; what it is about is told by words of the English one.
What carries the task from language to language is that words and their translations come to lie close together. Without its blocks the encoder is a
bag of words, which learns that within seconds; blocks are added to embeddings that are aligned, and a fine-tuning leaves these as they are.
"""

from __future__ import annotations

import codecs
import copy
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.datasets.load import load
from limbeck.datasets.tokenize import padding_token, text_column, train_tokenizer
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.models.encoder import Encoder, encoder
from limbeck.models.initialize import unit_variance
from limbeck.tasks.custom import CustomTask
from limbeck.training import SparseTuning, Supervised, TrainingConfig

TOPICS = {
    "sport": "ball soccer football baseball basketball tennis game race bike bicycle skateboard surf snowboard player team",
    "water": "water beach ocean pool lake river boat swimming",
    "street": "street sidewalk city road car bus",
    "music": "guitar music singing stage band playing instrument",
    "food": "food table restaurant kitchen eating cooking",
}
BARE = {"batch_size": 128, "learning_rate": 1e-2}  # of the training without blocks
WORDS = {word: topic for topic, words in TOPICS.items() for word in words.split()}


def topic_of(caption: str) -> str | None:
    """The one topic whose words an English caption has; None for none or several."""
    found = {WORDS[word] for word in re.findall("[a-z]+", caption.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def content_words(captions: Sequence[str], count: int) -> list[str]:
    """The `count` most frequent words of four letters or more; ties by the alphabet."""
    found = Counter(word for caption in captions for word in set(re.findall("[a-z]{4,}", caption.lower())))
    return sorted(found, key=lambda word: (-found[word], word))[:count]


def hits(logits: Tensor, labels: Tensor) -> float:
    """The share of the three likeliest words that the English caption has.  (B, words) each"""
    return labels.gather(1, logits.topk(3, 1).indices).float().mean().item()


def word_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, summed over words, mean over captions.  (B, words) each"""
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none").sum(1).mean()


@dataclass(frozen=True)
class _Captions:
    ids: dict[str, Tensor]  # language to (captions, L)
    masks: dict[str, Tensor]
    labels: Tensor  # (captions,), -100 where a caption has no topic
    words: Tensor  # (captions, words), 1.0 where the English caption has the word
    size: int  # of the vocabulary
    special: tuple[int, ...]


@functools.lru_cache(maxsize=2)
def _captions(
    dataset: str, languages: tuple[str, ...], vocabulary: int, length: int, count: int, held: int, words: int
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
        coded = tokenizer(some, truncation=True, max_length=length, verbose=False)["input_ids"]
        ids[language] = torch.tensor([row + [padding_token(tokenizer)] * (length - len(row)) for row in coded])
        masks[language] = (torch.arange(length) < torch.tensor([len(row) for row in coded])[:, None]).long()
    names, english = list(TOPICS), text_column(rows, dataset, "train", "en")
    topics = [topic_of(text) for text in english]
    labels = torch.tensor([-100 if topic is None else names.index(topic) for topic in topics])
    chosen = content_words(english[:seen], words)
    had = [set(re.findall("[a-z]+", text.lower())) for text in english]
    content = torch.tensor([[float(word in some) for word in chosen] for some in had])
    return _Captions(ids, masks, labels, content, len(tokenizer), tuple(sorted(tokenizer.all_special_ids)))


@dataclass(frozen=True, kw_only=True)
class TranslationBed(Bed):
    """Captions in several languages, cut to `length` tokens of one byte-pair vocabulary.

    languages: columns of the data set, "rot13 fr" for French respelled. count: captions that are read. held: the last of them are for
    validation and test. labelled: so many captions of the source language have labels. depth, width, heads: of the multilingual encoder.
    embeddings: their deviation at first, beside `unit_variance` of everything else; of 1 they would move too slowly. Steps: of its
    training on translations, where a caption in any language is to tell which of the `words` most frequent ones its English one has,
    first without blocks (`bare_steps`, of 128 captions each), then with them; and of one's fine-tuning on labels.

        bed.translations(languages)                  captions, each in one of the languages, and their English words
        bed.texts(languages)                         the same without words
        bed.topics(language)                         the task; only in the source language anybody trains on its labels
        bed.multilingual(run)                        the encoder that learnt from translations, from the store
        bed.aligned(run, model, languages, ...)      train an encoder on translations, in place
        bed.measure(run, model, language)            accuracy in a language
    """

    name: str = "captions in four languages"
    dataset: str = "multi30k"
    languages: tuple[str, ...] = ("en", "de", "fr", "rot13 fr")
    source: str = "en"
    vocabulary: int = 4000
    words: int = 400
    length: int = 18
    count: int = 29000
    held: int = 5000
    labelled: int = 1000
    depth: int = 4
    width: int = 64
    heads: int = 4
    embeddings: float = 0.1
    bare_steps: int = 1500
    translating_steps: int = 600
    tuning_steps: int = 130
    batch_size: int = 32
    learning_rate: float = 2e-3
    expects: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)

    def captions(self) -> _Captions:
        return _captions(self.dataset, self.languages, self.vocabulary, self.length, self.count, self.held, self.words)

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

    def translations(self, languages: Sequence[str]) -> CustomTask:
        """Captions, every one in one of the languages, and the content words of its English translation."""
        found, seen = self.captions(), self._seen()
        cuts = {"train": (0, seen), "validation": (seen, seen + 500), "test": (seen + 500, seen + 1000)}
        split = {}
        for name, (first, last) in cuts.items():
            last, step = min(last, len(found.words)), len(languages)
            at = [torch.arange(min(first, last - step) + i, last, step) for i in range(step)]
            parts = [self._rows(language, some) for language, some in zip(languages, at)]
            split[name] = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            split[name]["labels"] = found.words[torch.cat(at)]
        return self._task(split, "translations", metric=hits, metric_name="hits", loss=word_loss)

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
        self,
        run: Run,
        model: Encoder,
        languages: Sequence[str],
        bare_steps: int,
        steps: int,
        counted: bool = True,
        **changes: Any,
    ) -> Encoder:
        """Train in place to tell the English words of captions in these languages; the head that does is thrown away.

        bare_steps: without the blocks, which come back as they were: a bag of words learns; steps: then with them. changes: of the
        bare steps' configuration.
        """
        task, topics, blocks = self.translations(languages), model.head, model.blocks
        model.head = nn.Linear(self.width, self.words).to(topics.weight.device)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        seed = None if counted else 0
        if bare_steps:
            model.blocks = nn.ModuleList()
            config = self.config(bare_steps, **(BARE | changes))
            run.train(Supervised(model, task), task, config, seed=seed, counted=counted)
            model.blocks = blocks
        if steps:
            run.train(Supervised(model, task), task, self.config(steps), seed=seed, counted=counted)
        model.head = topics
        return model

    def multilingual(self, run: Run) -> Encoder:
        """The encoder of all languages; its head is untrained."""
        key = {"kind": "multilingual encoder", "version": 3, "data": self.translations(self.languages).digest()}
        key |= {"sizes": [self.depth, self.width, self.heads, self.embeddings]}
        key |= {"bare": self.config(self.bare_steps, **BARE).to_json()}
        key |= {"training": self.config(self.translating_steps).to_json()}

        def train(model: Encoder) -> None:
            self.aligned(run, model, self.languages, self.bare_steps, self.translating_steps, counted=False)

        return run.trained(key, self.encoder, train)

    def measure(self, run: Run, model: nn.Module, language: str) -> dict[str, float]:
        """Accuracy and the like on the captions of a language, of the run's split."""
        model.eval()
        return self.topics(language).evaluate(
            lambda batch: model(batch["input_ids"], batch["attention_mask"]), run.split
        )

    def reference(self, run: Run) -> dict[str, float]:
        """The multilingual encoder, all but its embeddings fine-tuned on labels of the source language: accuracy there, and `other`,
        the mean over the others."""
        model, task = copy.deepcopy(self.multilingual(run)), self.topics(self.source)
        still = {"tokens.weight": torch.zeros_like(model.tokens.weight, dtype=torch.bool)}
        run.train(SparseTuning(Supervised(model, task), still), task, self.config(self.tuning_steps))
        found = {name: self.measure(run, model, name)["accuracy"] for name in self.languages}
        own = found.pop(self.source)
        return {"accuracy": own, "other": sum(found.values()) / len(found)} | {
            f"accuracy in {k}": v for k, v in found.items()
        }


CAPTIONS = TranslationBed(expects={"accuracy": (0.78, 1.0), "other": (0.68, 1.0)})
