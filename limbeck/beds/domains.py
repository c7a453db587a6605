"""Domains: digits turned by several angles to learn from, and by another one to be tested on after a look at a few images of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from limbeck.beds.base import Bed
from limbeck.beds.images import MNIST
from limbeck.datasets.augment import Turned
from limbeck.files import digest
from limbeck.measure.latency import evaluating
from limbeck.models import convnet
from limbeck.objectives import CrossEntropy
from limbeck.tasks import ImageClassification
from limbeck.training import OnViews, Procedure, Supervised, TrainingConfig

if TYPE_CHECKING:
    from limbeck.experiments.run import Run


@dataclass(frozen=True)
class TurnedDigits(Bed):
    """angles: of the source domains, one expert each. unseen: of the tested one. train: digits, all seen in every domain. groups: how many
    adaptations are measured, each on `support` unlabelled images of the unseen domain.

        bed.experts(run), bed.domains(), bed.fresh(run)
        bed.fit(run, procedure, steps)              one stage of training, counted
        bed.measure(run, adapt)                     mean accuracy after adapt(images) -> model, over the groups; None: not adapted
    """

    name: str = "turned digits"
    angles: tuple[float, ...] = (0.0, 30.0, 60.0, 90.0)
    unseen: float = 120.0
    train: int = 1000
    width: int = 16
    support: int = 16
    groups: int = 5
    steps: int = 200
    expert_steps: int = 150
    expects: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {"accuracy": (0.3, 0.85), "expert_accuracy": (0.8, 1.0)}, compare=False
    )

    def task(self) -> ImageClassification:
        return MNIST.task(self.train)

    def collections(self) -> tuple[str, ...]:
        return ("mnist",)

    def digest(self) -> str:
        return digest({"data": self.task().digest(), "settings": self.settings(), "version": 1})

    def domains(self) -> list[Turned]:
        return [Turned(angle) for angle in self.angles]

    def network(self) -> nn.Module:
        return convnet(2, self.width, 10, 1, self.task().height)

    def fresh(self, run: Run) -> nn.Module:
        return run.fresh(self.network)

    def config(self, steps: int, **changes: Any) -> TrainingConfig:
        settings = {"batch_size": 64, "learning_rate": 2e-3, "warmup": 0.1} | changes
        return TrainingConfig(steps=steps, **settings)

    def experts(self, run: Run) -> list[nn.Module]:
        """One network per source domain, trained on its labels, shared by all arms."""
        made = []
        for angle, domain in zip(self.angles, self.domains()):
            config = self.config(self.expert_steps)
            key = {"kind": "domain expert", "version": 1, "data": self.task().digest(), "angle": angle}
            key |= {"width": self.width, "training": config.to_json()}

            def train(model: nn.Module, domain=domain, config=config) -> None:
                procedure = OnViews(Supervised(model, CrossEntropy()), domain)
                run.train(procedure, self.task(), config, seed=0, counted=False)

            made.append(run.trained(key, self.network, train))
        return made

    def fit(self, run: Run, procedure: Procedure, steps: int, **changes: Any) -> None:
        run.train(procedure, self.task(), self.config(steps, **changes))

    def supports(self, run: Run) -> list[Tensor]:
        """For each group, images of the unseen domain to adapt to: train images, so that no measured image is seen."""
        images = torch.cat([batch["pixel_values"] for batch in self.task().batches("train", 1000)])
        order = torch.randperm(len(images), generator=run.generator("support"))[: self.groups * self.support]
        turned = Turned(self.unseen)({"pixel_values": images[order]})["pixel_values"]
        return list(turned.split(self.support))

    def measure(
        self, run: Run, model: nn.Module, adapt: Callable[[Tensor], nn.Module] | None = None
    ) -> dict[str, float]:
        """`accuracy` on the unseen domain of the run's split: of the model, or of what `adapt` makes of each group's images, averaged."""
        adapted = [model] if adapt is None else [adapt(images) for images in self.supports(run)]
        turn, found = Turned(self.unseen), []
        for one in adapted:
            with evaluating(one):
                answer = lambda batch, one=one: one(turn(batch)["pixel_values"])  # noqa: E731
                found.append(self.task().evaluate(answer, run.split)["accuracy"])
        return {"accuracy": sum(found) / len(found)}

    def reference(self, run: Run) -> dict[str, float]:
        """One network of all domains, not adapted; `expert_accuracy`: of the first expert in its own domain."""
        model, expert = self.fresh(run), self.experts(run)[0]
        self.fit(run, OnViews(Supervised(model, CrossEntropy()), AnyDomain(tuple(self.domains()))), 2 * self.steps)
        with evaluating(expert):
            own = self.task().evaluate(lambda batch: expert(self.domains()[0](batch)["pixel_values"]), run.split)
        return self.measure(run, model) | {"expert_accuracy": own["accuracy"]}


@dataclass(frozen=True)
class AnyDomain:
    """Each batch as one of the domains has it, drawn anew."""

    domains: tuple[Turned, ...]

    def __call__(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.domains[int(torch.randint(len(self.domains), ()))](batch)


TURNED_DIGITS = TurnedDigits()
