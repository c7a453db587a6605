"""A language bed whose training text holds secrets: canaries, sentences with random digits that stand in it several times.

    The code of Ada is 4821.

Validation and test text are untouched, so perplexity says what a model is worth, and `limbeck.measure.exposure` what it gives away.
Every batch says under "private" how private the tokens are that it asks for, as `limbeck.datasets.privacy` estimates it from
patterns: long numbers of the text itself are taken for private too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.beds.language import LanguageBed
from limbeck.datasets.privacy import privacy
from limbeck.errors import DataError
from limbeck.experiments.run import Run
from limbeck.measure.exposure import mean_exposure
from limbeck.tasks.base import generator
from limbeck.tasks.language import LanguageModelling

NAMES = ("Ada", "Boris", "Clara", "David")
DIGITS = "0123456789"


class CanaryText(LanguageModelling):
    """Language modelling on characters with canary lines put between random lines of the train split.

    repeats: how often each canary stands in the text. length_of_secret: its digits. Batches carry "private", float32 (B, L): the degree
    of labels[b, t], 0 to 1. `canaries` are pairs of a prefix and a secret, as text.
    """

    def __init__(self, dataset: str, *, config: str | None, length: int, repeats: int, length_of_secret: int = 4):
        super().__init__(dataset, config=config, tokenizer="characters", length=length)
        draws = generator("canaries", 0)
        self.canaries = []
        for name in NAMES:
            digits = torch.randint(0, 10, (length_of_secret,), generator=draws).tolist()
            self.canaries.append((f"The code of {name} is ", "".join(DIGITS[digit] for digit in digits)))
        lines = self._lines(self._data["train"])
        unknown = self.tokenizer.unk_token_id
        for prefix, secret in self.canaries:
            if unknown in self.tokens(f"{prefix}{secret}.\n"):
                raise DataError(f"the text of {dataset!r} lacks a character of the canary {prefix + secret!r}")
        added = [self.tokens(f"{prefix}{secret}.\n") for prefix, secret in self.canaries for _ in range(repeats)]
        places = torch.randint(0, len(lines) + 1, (len(added),), generator=draws).tolist()
        for place, tokens in sorted(zip(places, added), key=lambda pair: -pair[0]):
            lines.insert(place, tokens)
        self._data["train"] = torch.cat(lines)
        self._private = {split: self._degrees(tokens) for split, tokens in self._data.items()}

    def tokens(self, text: str) -> Tensor:
        """The token numbers of a text. (n,) int32"""
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int32)

    def _lines(self, tokens: Tensor) -> list[Tensor]:
        ends = (tokens == int(self.tokens("\n")[0])).nonzero().squeeze(1) + 1
        return list(tokens.tensor_split(ends.tolist()))

    def _degrees(self, tokens: Tensor) -> Tensor:
        names = self.tokenizer.convert_ids_to_tokens(range(self.vocabulary_size))
        return privacy([names[token] for token in tokens.tolist()])

    def _examples(self, split: str, index: Tensor, augment: torch.Generator | None) -> dict[str, Tensor]:
        degrees = self._private[split]
        position = index[:, None] * self.length + torch.arange(1, self.length + 1)
        found = torch.where(position < len(degrees), degrees[position.clamp_max(len(degrees) - 1)], 0.0)
        return {**super()._examples(split, index, augment), "private": found}

    def _content(self) -> Iterator[Any]:
        yield from super()._content()
        for split in self.splits():
            yield from (f"private {split}", self._private[split])


@functools.lru_cache(maxsize=2)
def _task(dataset: str, config: str | None, length: int, repeats: int) -> CanaryText:
    return CanaryText(dataset, config=config, length=length, repeats=repeats)


@dataclass(frozen=True)
class CanaryBed(LanguageBed):
    """A `LanguageBed` on `CanaryText`, with the teacher that memorized the canaries."""

    dataset: str = "web_text"
    config: str | None = "c4_demo"
    repeats: int = 300

    @property
    def name(self) -> str:
        return f"canaries-{self.dataset}"

    @property
    def task(self) -> CanaryText:
        return _task(self.dataset, self.config, self.length, self.repeats)

    def exposure(self, model: nn.Module) -> float:
        """The mean exposure of the canaries in bits; at most log2(10000) = 13.3 for four digits."""
        task = self.task
        pairs = [tuple(task.tokens(part).long() for part in canary) for canary in task.canaries]
        return mean_exposure(model.eval(), pairs, task.tokens(DIGITS).long())

    def reference(self, run: Run) -> dict[str, float]:
        teacher = self.teacher(run)
        return {**self.measure(run, teacher), "exposure": self.exposure(teacher)}


CANARIES = CanaryBed()
