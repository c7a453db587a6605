"""Language beds: small decoder language models on a few hundred kilobytes of running text, of characters or of byte pairs.

CHARACTERS   tinyshakespeare, one token per character        perplexities of different tokenizers do not compare
BYTE_PAIRS   tinyshakespeare, 512 byte pairs
WEB          web_text (c4_demo), 512 byte pairs
WIKITEXT     wikitext2, 512 byte pairs
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.beds.base import Bed
from limbeck.experiments.run import Run
from limbeck.files import digest
from limbeck.models.gpt import GPT, gpt
from limbeck.objectives import CrossEntropy, Objective
from limbeck.signals import call
from limbeck.tasks.language import LanguageModelling
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Distil, Procedure

TEACHER = {"depth": 4, "width": 128, "heads": 4}
STUDENT = {"depth": 1, "width": 64, "heads": 4}


@functools.lru_cache(maxsize=4)
def _task(dataset: str, config: str | None, tokenizer: str, vocabulary: int, length: int) -> LanguageModelling:
    return LanguageModelling(dataset, config=config, tokenizer=tokenizer, vocabulary=vocabulary, length=length)


@dataclass(frozen=True)
class LanguageBed(Bed):
    """Blocks of `length` tokens of one text, a four-layer reference model, and what it takes to train small ones.

    dataset, config, tokenizer, vocabulary, length: see `LanguageModelling`. blocks: perplexity is measured on that many
    blocks of a split, evenly spaced. teacher_steps: of the reference, with `batch_size` blocks per step. expected: the lowest
    and highest test perplexity of the reference.

    Everything trains in bfloat16 autocast with AdamW, a tenth of warmup, cosine to 0 and gradients clipped to norm 1.
    """

    dataset: str = "tinyshakespeare"
    config: str | None = None
    tokenizer: str = "characters"
    vocabulary: int = 512
    length: int = 128
    blocks: int = 400
    batch_size: int = 16
    teacher_steps: int = 1000
    teacher_learning_rate: float = 3e-3
    expected: tuple[float, float] = (1.0, 1e9)

    @property
    def name(self) -> str:
        return f"{self.tokenizer}-{self.dataset}"

    @property
    def expects(self) -> dict[str, tuple[float, float]]:
        return {"perplexity": self.expected}

    @property
    def task(self) -> LanguageModelling:
        """The data, cut into blocks; made once per process."""
        return _task(self.dataset, self.config, self.tokenizer, self.vocabulary, self.length)

    def digest(self) -> str:
        return digest({"bed": "language", "data": self.task.digest(), "blocks": self.blocks})

    def model(self, **sizes: Any) -> GPT:
        """An untrained GPT of the bed's vocabulary and length; sizes as in `limbeck.models.gpt`, by default `STUDENT`."""
        return gpt(self.task.vocabulary_size, self.length, **{**STUDENT, **sizes})

    def training(self, steps: int, learning_rate: float = 3e-3, **settings: Any) -> TrainingConfig:
        """The bed's schedule for a run of that many steps; settings replace any field of `TrainingConfig`."""
        usual = {"batch_size": self.batch_size, "warmup": 0.1, "gradient_clipping": 1.0, "precision": "bf16"}
        return TrainingConfig(steps=steps, learning_rate=learning_rate, **{**usual, **settings})

    def teacher(self, run: Run, *, seed: int = 0, steps: int | None = None, **sizes: Any) -> GPT:
        """A model trained on the true tokens, from the shared store: by default the reference (four layers of width 128).

        What it costs is no arm's. seed: of the teacher, not of the run: all arms and seeds share it.
        """
        sizes = {**TEACHER, **sizes}
        config = self.training(steps or self.teacher_steps, self.teacher_learning_rate)
        key = {"data": self.task.digest(), "model": sizes, "training": config.identity(), "seed": seed, "version": 1}

        def train(model: nn.Module) -> None:
            run.train(Distil(model, None, CrossEntropy()), self.task, config, seed=seed, counted=False)

        return run.trained(key, lambda: self.model(**sizes), train)

    def fit(
        self,
        run: Run,
        model: nn.Module,
        objective: Objective | None = None,
        teacher: Any = None,
        *,
        steps: int = 400,
        procedure: Procedure | None = None,
        counted: bool = True,
        **settings: Any,
    ) -> nn.Module:
        """Train `model` in place and return it in evaluation mode; `counted`: as the arm's cost.

        objective: by default the true tokens; with a teacher, what it is to learn of it. procedure: instead of both, any
        procedure around the model. settings: fields of `TrainingConfig`.
        """
        procedure = procedure or Distil(model, teacher, objective or CrossEntropy())
        run.train(procedure, self.task, self.training(steps, **settings), counted=counted)
        return model.eval()

    def student(self, run: Run, **sizes: Any) -> GPT:
        """An untrained student whose first weights follow from the run's seed only; by default one layer of width 64."""
        return run.fresh(lambda: self.model(**sizes))

    def trained_student(self, run: Run, steps: int, **sizes: Any) -> GPT:
        """The seed's student after some steps on the text alone: where all arms of a seed go on from. Not an arm's cost."""
        sizes = {**STUDENT, **sizes}
        config = self.training(steps)
        key = {"bed": self.digest(), "what": "student", "model": sizes, "training": config.identity()}

        def train(model: nn.Module) -> None:
            run.train(Distil(model, None, CrossEntropy()), self.task, config, counted=False)

        return run.trained({**key, "seed": run.seed, "version": 1}, lambda: self.student(run, **sizes), train)

    def measure(self, run: Run, model: nn.Module) -> dict[str, float]:
        """Perplexity and loss (nats per token) in float32 on `blocks` blocks of the run's split."""
        model.eval()
        return self.task.evaluate(lambda batch: call(model, batch), run.split, batch_size=64, limit=self.blocks)

    def reference(self, run: Run) -> dict[str, float]:
        return self.measure(run, self.teacher(run))


CHARACTERS = LanguageBed(expected=(5.0, 7.5))
BYTE_PAIRS = LanguageBed(tokenizer="bpe", expected=(15.0, 30.0))
WEB = LanguageBed(dataset="web_text", config="c4_demo", tokenizer="bpe", expected=(10.0, 80.0))
WIKITEXT = LanguageBed(dataset="wikitext2", tokenizer="bpe", expected=(10.0, 80.0))
