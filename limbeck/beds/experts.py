"""A small mixture-of-experts language model on the characters of Shakespeare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from limbeck.beds.base import Bed
from limbeck.files import digest
from limbeck.models.mixture_of_experts import mixture_gpt
from limbeck.objectives import CrossEntropy, ExpertBalance
from limbeck.signals import call, first_tensor
from limbeck.tasks.language import LanguageModelling
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


@dataclass(frozen=True)
class Experts(Bed):
    """tinyshakespeare by characters in blocks of `length`; a GPT of `depth` blocks with `experts` experts, `top` per token.

    Trained on the cross-entropy + 0.01 x `ExpertBalance`.
    """

    length: int = 64
    depth: int = 2
    width: int = 64
    heads: int = 4
    hidden: int = 128
    experts: int = 8
    top: int = 2
    steps: int = 1000
    learning_rate: float = 3e-3

    name = "experts"
    expects: ClassVar[dict[str, tuple[float, float]]] = {"perplexity": (5.5, 7.0)}

    @cached_property
    def task(self) -> LanguageModelling:
        return LanguageModelling("tinyshakespeare", length=self.length)

    @property
    def config(self) -> TrainingConfig:
        """The schedule that the reference trains with."""
        return TrainingConfig(
            steps=self.steps, batch_size=32, learning_rate=self.learning_rate, warmup=0.1, gradient_clipping=1.0
        )

    def digest(self) -> str:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return digest({"bed": self.name, "version": 1, "task": self.task.digest(), **fields})

    def model(self) -> nn.Module:
        sizes = self.length, self.depth, self.width, self.heads, self.hidden, self.experts, self.top
        return mixture_gpt(self.task.vocabulary_size, *sizes)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return self.task.evaluate(lambda batch: first_tensor(call(model.eval(), batch)), split)

    def reference(self, run: Run) -> dict[str, float]:
        return self.evaluate(self.teacher(run), run.split)

    def teacher(self, run: Run, seed: int = 0) -> nn.Module:
        """The trained mixture, from the shared store."""
        key: dict[str, Any] = {"bed": self.digest(), "what": "reference", "seed": seed, "version": 1}
        objective = CrossEntropy() + 0.01 * ExpertBalance(top=self.top)
        return run.trained(
            key,
            self.model,
            lambda m: run.train(Supervised(m, objective), self.task, self.config, seed=seed, counted=False),
        )
