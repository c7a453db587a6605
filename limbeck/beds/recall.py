"""Multi-query associative recall: remember which value followed which key, and answer for every key that is asked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.models.gpt import gpt
from limbeck.signals import call, first_tensor
from limbeck.tasks.base import IGNORED
from limbeck.tasks.custom import CustomTask
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


def recall_sequences(count: int, pairs: int, queries: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` sequences k_1 v_1 ... k_n v_n q_1 q_2 ... q_m and what to answer: input_ids, labels (count, 2 pairs + queries).

    Keys are different tokens of the first half of the vocabulary, values are any of the second half; every query is one of
    the sequence's keys, its label the key's value; the other labels are -100. A pure function of its arguments.
    """
    draw = torch.Generator().manual_seed(seed)
    half = vocabulary // 2
    keys = torch.rand(count, half, generator=draw).argsort(1)[:, :pairs]
    values = torch.randint(half, vocabulary, (count, pairs), generator=draw)
    asked = torch.randint(0, pairs, (count, queries), generator=draw)
    ids = torch.cat([torch.stack([keys, values], 2).flatten(1), keys.gather(1, asked)], 1)
    labels = torch.full_like(ids, IGNORED)
    labels[:, 2 * pairs :] = values.gather(1, asked)
    return ids, labels


@dataclass(frozen=True)
class Recall(Bed):
    """Associative recall of `pairs` key-value pairs, each sequence with `queries` questions, and a small GPT that learns it.

    With the default schedule the GPT only finds out which values occurred (accuracy 0.21, where guessing among them
    gives one in eight): a schedule that matches keys to values is not settled.
    Accuracy over the questions; guessing gives 2 / vocabulary. The data are drawn anew for no seed: train, validation and
    test are fixed. Source of the task: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models",
    2023, section 3. Deviation: the questions follow each other directly, in any order, without filler tokens between them.
    """

    pairs: int = 8
    queries: int = 16
    vocabulary: int = 64
    examples: int = 16384
    depth: int = 2
    width: int = 64
    heads: int = 2
    steps: int = 900
    learning_rate: float = 3e-3

    name = "recall"
    expects: ClassVar[dict[str, tuple[float, float]]] = {"accuracy": (0.15, 1.0)}

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.vocabulary // 2 or self.queries < 1:
            raise UsageError(
                f"pairs={self.pairs}, queries={self.queries}: at least one of each, and at most vocabulary / 2 = "
                f"{self.vocabulary // 2} pairs, because keys differ"
            )

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return 2 * self.pairs + self.queries

    @property
    def task(self) -> CustomTask:
        sizes = {"train": (self.examples, 1), "validation": (1024, 2), "test": (2048, 3)}
        splits = {
            split: dict(
                zip(("input_ids", "labels"), recall_sequences(n, self.pairs, self.queries, self.vocabulary, seed))
            )
            for split, (n, seed) in sizes.items()
        }
        return CustomTask(splits, inputs=("input_ids",), name=self.name, version=self.digest())

    @property
    def config(self) -> TrainingConfig:
        """The schedule that the reference trains with."""
        return TrainingConfig(
            steps=self.steps, batch_size=64, learning_rate=self.learning_rate, warmup=0.1, gradient_clipping=1.0
        )

    def digest(self) -> str:
        return digest({"bed": self.name, "version": 1, **self.__dict__})

    def model(self) -> nn.Module:
        return gpt(self.vocabulary, self.length, self.depth, self.width, self.heads)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return self.task.evaluate(lambda batch: first_tensor(call(model.eval(), batch)), split)

    def reference(self, run: Run) -> dict[str, float]:
        return self.evaluate(self.teacher(run), run.split)

    def teacher(self, run: Run, seed: int = 0) -> nn.Module:
        """The trained GPT, from the shared store."""
        key: dict[str, Any] = {"bed": self.digest(), "what": "reference", "seed": seed, "version": 1}
        return run.trained(
            key,
            self.model,
            lambda m: run.train(Supervised(m, self.task), self.task, self.config, seed=seed, counted=False),
        )
