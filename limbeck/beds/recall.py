"""Multi-query associative recall: remember which value followed which key, and answer for every key that is asked again."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.errors import UsageError
from limbeck.files import digest
from limbeck.models.gpt import GPT, gpt
from limbeck.models.initialize import unit_variance
from limbeck.models.state_space import StateSpaceMixer
from limbeck.signals import call, first_tensor
from limbeck.tasks.base import IGNORED
from limbeck.tasks.custom import CustomTask
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Procedure, Supervised

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

    Accuracy over the questions: a model that knows which values occurred, but not which belongs to which key, gets about 0.2;
    guessing gives 2 / vocabulary. The reference is a GPT with rotary positions and a head of its own. `state_accuracy` is that of a model
    of the same shape and schedule whose mixers keep a state of `state` numbers per channel in place of attention: too small for all pairs.
    Data are drawn anew for no seed: train, validation and test are fixed. Everything trains with AdamW, a tenth of warmup, cosine to 0 and
    gradients clipped to norm 1, from `unit_variance`: with the deviation 0.02 that `gpt` begins with, a model this narrow
    has not found the match between keys after 1250 steps; from there it has after 300. On validation the GPT reaches 0.997 after 400
    steps and `state_accuracy` is 0.206 after all.

    Source of the task: Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models", 2023, section 3.
    Deviation: the questions follow each other directly, in any order, without filler tokens between them.
    """

    pairs: int = 8
    queries: int = 16
    vocabulary: int = 64
    examples: int = 16384
    depth: int = 2
    width: int = 64
    heads: int = 2
    hidden: int = 64
    state: int = 1
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3

    name = "recall"
    expects: ClassVar[dict[str, tuple[float, float]]] = {"accuracy": (0.9, 1.0), "state_accuracy": (0.1, 0.5)}

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
        return _task(self)

    def digest(self) -> str:
        return digest({"bed": self.name, "version": 2, **self.__dict__})

    def training(self, steps: int | None = None, learning_rate: float | None = None, **settings: Any) -> TrainingConfig:
        """The schedule of the reference, with changes."""
        usual = {"batch_size": self.batch_size, "warmup": 0.1, "gradient_clipping": 1.0}
        rate = learning_rate or self.learning_rate
        return TrainingConfig(steps=steps or self.steps, learning_rate=rate, **{**usual, **settings})

    def model(self, **sizes: Any) -> GPT:
        """An untrained GPT; sizes as in `limbeck.models.gpt`."""
        own = {"depth": self.depth, "width": self.width, "heads": self.heads, "hidden": self.hidden}
        return unit_variance(gpt(self.vocabulary, self.length, **{**own, "tied": False, "rotary": True, **sizes}))

    def student(self, run: Run, state: int | None = None, **sizes: Any) -> GPT:
        """An untrained model whose weights follow from the run's seed. state: mixers with a state of so many numbers per channel take the
        place of attention."""

        def made() -> GPT:
            model = self.model(**sizes)
            for block in model.blocks if state else ():
                heads = block.attention.query.out_features // block.attention.head_width
                width = block.attention.query.in_features
                block.attention = StateSpaceMixer(width, heads, state, retention=0.98)
            return model

        return run.fresh(made)

    def fit(
        self,
        run: Run,
        model: nn.Module,
        *,
        procedure: Procedure | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        **settings: Any,
    ) -> nn.Module:
        """Train `model` in place on the answers, or by a procedure around it; counted. Returns it in evaluation mode."""
        config = self.training(steps, learning_rate, **settings)
        run.train(procedure or Supervised(model, self.task), self.task, config)
        return model.eval()

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """`accuracy` and `loss` over the questions of the run's split."""
        return self.task.evaluate(lambda batch: first_tensor(call(model.eval(), batch)), run.split)

    def teacher(self, run: Run, seed: int = 0, **sizes: Any) -> GPT:
        """The trained GPT, from the shared store; what it costs is no arm's."""
        config = self.training()
        key = {"bed": self.digest(), "what": "reference", "seed": seed, "sizes": sizes, "training": config.identity()}

        def train(model: nn.Module) -> None:
            run.train(Supervised(model, self.task), self.task, config, seed=seed, counted=False)

        return run.trained({**key, "version": 2}, lambda: self.model(**sizes), train)

    def reference(self, run: Run) -> dict[str, float]:
        limited = self.measure(run, self.fit(run, self.student(run, self.state)))["accuracy"]
        return self.measure(run, self.teacher(run)) | {"state_accuracy": limited}


@functools.lru_cache(maxsize=4)
def _task(bed: Recall) -> CustomTask:
    sizes = {"train": (bed.examples, 1), "validation": (1024, 2), "test": (2048, 3)}
    splits = {
        split: dict(zip(("input_ids", "labels"), recall_sequences(n, bed.pairs, bed.queries, bed.vocabulary, seed)))
        for split, (n, seed) in sizes.items()
    }
    return CustomTask(splits, inputs=("input_ids",), name=bed.name, version=bed.digest())


RECALL = Recall()
