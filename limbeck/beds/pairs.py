"""Pairs of code: the same function in Java and in C#, which a small encoder learns to match."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.beds.base import Bed
from limbeck.datasets.load import load
from limbeck.datasets.tokenize import padding_token, text_column, train_tokenizer
from limbeck.files import digest
from limbeck.measure.latency import evaluating
from limbeck.models.multi_exit import exit_encoder
from limbeck.objectives import Objective, PairedContrast
from limbeck.signals import Signals, capture
from limbeck.tasks.base import SPLITS, subset
from limbeck.tasks.custom import CustomTask
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


def recall(pairs: Tensor, count: int = 1) -> float:
    """The share of first members whose own second member is among the `count` nearest by cosine, and the other way round; their mean.

    pairs (N, 2, D): every pair is looked for among all N.
    """
    first, second = F.normalize(pairs.float(), dim=-1).unbind(1)
    scores = first @ second.T
    found = [(s.topk(count, -1).indices == torch.arange(len(s))[:, None]).any(-1) for s in (scores, scores.T)]
    return torch.cat(found).double().mean().item()


def recall_at_one(pairs: Tensor, _: Tensor) -> float:
    """A task's metric: `recall` of pairs whose labels say nothing."""
    return recall(pairs)


def contrast(pairs: Tensor, _: Tensor) -> Tensor:
    """A task's loss: `PairedContrast`; 0 of one pair."""
    return PairedContrast()(Signals({"logits": pairs}), Signals({}), {}).value if len(pairs) > 1 else pairs.sum() * 0


@functools.lru_cache(maxsize=2)
def _task(dataset: str, columns: tuple[str, str], vocabulary: int, length: int, train: int) -> tuple[CustomTask, int]:
    found = load(dataset)
    kept = {"train": subset(len(found["train"]), train).tolist()}
    chosen = {split: rows.select(kept[split]) if split in kept else rows for split, rows in found.items()}
    texts = {split: [text_column(chosen[split], dataset, split, column) for column in columns] for split in SPLITS}
    tokenizer = train_tokenizer(texts["train"][0] + texts["train"][1], "bpe", vocabulary, framed=True)
    padding, data = padding_token(tokenizer), {}
    for split, sides in texts.items():
        ids = torch.full((len(sides[0]), 2, length), padding)
        mask = torch.zeros_like(ids)
        for side, column in enumerate(sides):
            for at, row in enumerate(tokenizer(column, truncation=True, max_length=length, verbose=False)["input_ids"]):
                ids[at, side, : len(row)], mask[at, side, : len(row)] = torch.tensor(row), 1
        data[split] = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(len(ids), dtype=torch.long)}
    task = CustomTask(
        data,
        metric=recall_at_one,
        metric_name="recall@1",
        loss=contrast,
        inputs=("input_ids", "attention_mask"),
        name="code pairs",
    )
    return task, len(tokenizer)


@dataclass(frozen=True)
class PairBed(Bed):
    """Functions in two languages, cut to `length` tokens of a byte-pair vocabulary learnt on the train split.

    layers, width, heads: of an encoder with exits (`exit_encoder`). steps, batch_size, learning_rate: of its training.

        bed.fit(run, objective, layers=(6,))    train an encoder; PairedContrast("exits.m") reads its exits
        bed.measure(run, model, {"recall@1": "exits.2"})    recall@1 of signals over all pairs of the run's split
    """

    name: str = "code pairs"
    dataset: str = "code_java_cs"
    columns: tuple[str, str] = ("java", "cs")
    vocabulary: int = 2000
    length: int = 32
    train: int = 4000
    layers: tuple[int, ...] = (2, 4, 6)
    width: int = 48
    heads: int = 4
    steps: int = 150
    batch_size: int = 32
    learning_rate: float = 2e-3
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"recall@1": (0.3, 0.9)}, compare=False)

    def task(self) -> CustomTask:
        return self._loaded()[0]

    def _loaded(self) -> tuple[CustomTask, int]:
        return _task(self.dataset, self.columns, self.vocabulary, self.length, self.train)

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings(), "version": 1})

    def encoder(self, run: Run, layers: tuple[int, ...] | None = None) -> nn.Module:
        """A fresh encoder of the run's seed."""
        sizes = {"length": self.length, "layers": layers or self.layers, "width": self.width, "heads": self.heads}
        return run.fresh(lambda: exit_encoder(self._loaded()[1], **sizes))

    def config(self, **changes: Any) -> TrainingConfig:
        settings = {"steps": self.steps, "batch_size": self.batch_size, "learning_rate": self.learning_rate}
        settings |= {"warmup": 0.1, "weight_decay": 0.01, "gradient_clipping": 1.0}
        return TrainingConfig(**(settings | changes))

    def fit(self, run: Run, objective: Objective, layers: tuple[int, ...] | None = None, **changes: Any) -> nn.Module:
        """A fresh encoder trained to minimize the objective."""
        model = self.encoder(run, layers)
        run.train(Supervised(model, objective), self.task(), self.config(**changes))
        return model

    def measure(self, run: Run, model: nn.Module, signals: Mapping[str, str]) -> dict[str, float]:
        """recall@1 of each named signal: metric -> signal. A signal of token states (2 B, L, H) is averaged over the tokens that count."""
        kept: dict[str, list[Tensor]] = {metric: [] for metric in signals}
        with evaluating(model), torch.no_grad():
            for batch in self.task().batches(run.split, 128):
                found = capture(model, batch, frozenset(signals.values()))
                for metric, signal in signals.items():
                    kept[metric].append(_as_pairs(found[signal], batch["attention_mask"]))
        return {metric: recall(torch.cat(parts)) for metric, parts in kept.items()}

    def reference(self, run: Run) -> dict[str, float]:
        last = self.layers[-1:]
        model = self.fit(run, PairedContrast("exits.0"), last)
        return self.measure(run, model, {"recall@1": "exits.0"})


def _as_pairs(x: Tensor, mask: Tensor) -> Tensor:
    """An exit's embeddings (B, 2, D) as they are; states (2 B, L, H) of the same pairs as means over tokens."""
    if x.shape[:2] == mask.shape[:2]:
        return x
    share = mask.flatten(0, 1).to(x.dtype)[..., None]
    return ((x * share).sum(1) / share.sum(1).clamp_min(1)).unflatten(0, tuple(mask.shape[:2]))


CODE_PAIRS = PairBed()
