"""Source and target sequences: fill in what is missing in Shakespeare, say what comes next, or name the language of a line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.datasets.languages import LANGUAGES, lines_by_language
from limbeck.errors import UsageError
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.models.encoder_decoder import encoder_decoder
from limbeck.models.initialize import unit_variance
from limbeck.objectives import CrossEntropy, Objective
from limbeck.signals import call
from limbeck.tasks.base import SPLITS
from limbeck.tasks.language import LanguageModelling
from limbeck.tasks.sequences import SequenceToSequence
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Distil, Procedure

KINDS = ("spans", "continuation", "languages")


def spans(blocks: Tensor, count: int, size: int, first: int, seed: int) -> tuple[Tensor, Tensor]:
    """Span corruption: `count` spans of `size` tokens of each block are replaced by the marks first, first + 1, ... in order.

    blocks (N, L) -> sources (N, L - count (size - 1)), the text with marks; targets (N, count (size + 1)), each mark and what stood
    there. Spans do not touch one another. Source: Raffel et al., "T5", 2020, section 3.1.4, with spans of one length.
    """
    total, length = blocks.shape
    free = length - count * (size + 1)
    if count < 1 or size < 1 or free < 1:
        raise UsageError(f"{count} spans of {size} tokens do not fit into blocks of {length}")
    draw = torch.Generator().manual_seed(seed)
    gaps = torch.rand(total, free, generator=draw).argsort(1)[:, :count].sort(1).values
    begin = gaps + torch.arange(count) * (size + 1)  # at least one token between two spans
    place = begin[..., None] + torch.arange(size)
    marks = (first + torch.arange(count)).expand(total, count).to(blocks.dtype)
    targets = torch.cat([marks[..., None], blocks.gather(1, place.flatten(1)).unflatten(1, (count, size))], 2).flatten(
        1
    )
    marked = blocks.scatter(1, begin, marks)
    keep = torch.ones_like(blocks, dtype=torch.bool).scatter(1, place[..., 1:].flatten(1), False)
    return marked[keep].reshape(total, -1), targets


def _languages(source: int) -> SequenceToSequence:
    """Windows of lines as bytes; after these the start token, 256, and one token per language."""
    made = {}
    for split, lines in lines_by_language().items():
        texts, labels = [], []
        for code, text in lines:
            line = list(text.encode())
            starts = range(0, len(line) - source + 1, source // (4 if split == "train" else 2))
            texts += [line[at : at + source] for at in starts]
            labels += [[257 + LANGUAGES.index(code)]] * len(starts)
        made[split] = torch.tensor(texts), torch.tensor(labels)
    return SequenceToSequence(made, 257 + len(LANGUAGES), padding=256, start=256, dataset="udhr languages")


@functools.lru_cache(maxsize=4)
def _task(kind: str, source: int, target: int) -> SequenceToSequence:
    if kind == "languages":
        return _languages(source)
    text = LanguageModelling("tinyshakespeare", length=source + target)
    size, made = text.vocabulary_size, {}
    marks = 4 if kind == "spans" else 0
    for place, split in enumerate(SPLITS):
        blocks = next(text.batches(split, text.size(split) - 1))["input_ids"]  # without the last, short block
        if kind == "continuation":
            made[split] = blocks[:, :source], blocks[:, source:]
            continue
        copies = 3 if split == "train" else 1
        parts = [spans(blocks, marks, target // marks - 1, size, 10 * place + copy) for copy in range(copies)]
        made[split] = tuple(torch.cat(column) for column in zip(*parts))
    special = {"padding": text.padding, "start": text.padding}  # no source or target has padding
    return SequenceToSequence(made, size + marks, **special, dataset=f"tinyshakespeare {kind}")


@dataclass(frozen=True)
class SequenceBed(Bed):
    """kind "spans": blocks of source + target characters with four spans missing, to be filled in by the target, of which each
    span takes a quarter (its mark first). kind "continuation": `source` characters, and the `target` that follow. kind
    "languages": windows of `source` bytes of lines of the Declaration of Human Rights, and one token for which of 32 European languages it is (accuracy:
    the share named right).

    Tokens are those of `limbeck.beds.language`'s characters, then the marks; of languages, bytes, the start, and the languages. How much
    of the loss depends on the source at all differs widely, see `without_source`. embeddings: draw first weights by
    `limbeck.models.initialize.unit_variance`, embeddings with this deviation; None leaves those of the model. The reference is an encoder-decoder. Everything trains with AdamW, a tenth of warmup, cosine to 0, gradients clipped to 1.
    """

    kind: str = "continuation"
    source: int = 96
    target: int = 16
    batch_size: int = 16
    steps: int = 600
    learning_rate: float = 3e-3
    embeddings: float | None = None
    expected: tuple[float, float] = (0.0, 1e9)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind={self.kind!r}: must be one of {', '.join(KINDS)}")
        if self.kind == "languages" and self.target != 1:
            raise UsageError(f"target={self.target}: a language is one token")
        if self.kind == "spans" and (self.target % 4 or self.target < 8):
            raise UsageError(f"target={self.target}: four spans need a multiple of 4, of at least 8")

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.collections()[0]}"

    @property
    def expects(self) -> dict[str, tuple[float, float]]:
        return {"loss": self.expected}

    @property
    def task(self) -> SequenceToSequence:
        return _task(self.kind, self.source, self.target)

    @property
    def longest(self) -> int:
        """Tokens of a source as the model reads it."""
        return self.task._data["train"][0].shape[1]

    def collections(self) -> tuple[str, ...]:
        return ("udhr" if self.kind == "languages" else "tinyshakespeare",)

    def digest(self) -> str:
        first = {"embeddings": self.embeddings} if self.embeddings else {}
        return digest({"bed": "sequences", "data": self.task.digest(), **first})

    def training(self, steps: int, learning_rate: float | None = None, **settings: Any) -> TrainingConfig:
        usual = {"batch_size": self.batch_size, "warmup": 0.1, "gradient_clipping": 1.0}
        return TrainingConfig(steps=steps, learning_rate=learning_rate or self.learning_rate, **{**usual, **settings})

    def student(self, run: Run, **sizes: Any) -> nn.Module:
        """An untrained encoder-decoder whose first weights follow from the run's seed; sizes as in `encoder_decoder`."""
        return self.untrained(run, encoder_decoder, **sizes)

    def untrained(self, run: Run, make: Callable[..., nn.Module], **sizes: Any) -> nn.Module:
        """`encoder_decoder` or `prefix_decoder` for this bed, with first weights that follow from the run's seed."""

        def made() -> nn.Module:
            model = make(self.task.vocabulary_size, self.longest, self.target, **sizes)
            return unit_variance(model, self.embeddings) if self.embeddings else model

        return run.fresh(made)

    def fit(
        self,
        run: Run,
        model: nn.Module,
        objective: Objective | None = None,
        teacher: Any = None,
        *,
        steps: int,
        procedure: Procedure | None = None,
        learning_rate: float | None = None,
        **settings: Any,
    ) -> nn.Module:
        """Train `model` in place on the targets, on an objective with a teacher, or by a procedure; counted."""
        procedure = procedure or Distil(model, teacher, objective or CrossEntropy())
        run.train(procedure, self.task, self.training(steps, learning_rate, **settings))
        return model.eval()

    def measure(self, run: Run, model: nn.Module, limit: int | None = None) -> dict[str, float]:
        """Loss, perplexity and accuracy on the run's split."""
        model.eval()
        return self.task.evaluate(lambda batch: call(model, batch), run.split, batch_size=64, limit=limit)

    def without_source(self, run: Run, model: nn.Module, limit: int | None = None) -> float:
        """The loss when every target comes with the source of another example, one from far away in the split: near the usual loss, the
        source is hardly needed."""
        model.eval()

        def forward(batch: Mapping[str, Tensor]) -> Tensor:
            return call(model, {**batch, "input_ids": batch["input_ids"].roll(len(batch["input_ids"]) // 2, 0)})

        return self.task.evaluate(forward, run.split, batch_size=1024, limit=limit)["loss"]

    def reference(self, run: Run) -> dict[str, float]:
        model = self.student(run, encoder_depth=3, decoder_depth=1, width=64, heads=4)
        return self.measure(run, self.fit(run, model, steps=self.steps))


CONTINUATION = SequenceBed(expected=(2.0, 2.6))
SPANS = SequenceBed("spans", source=104, target=24, expected=(1.7, 2.8))
LANGUAGE = SequenceBed(
    "languages", source=64, target=1, batch_size=32, learning_rate=1e-3, embeddings=0.125, expected=(0.3, 1.2)
)
