"""Graphs: nodes of citation graphs, and small molecules and proteins, with a small graph convolutional network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from limbeck.beds.base import Bed
from limbeck.files import digest
from limbeck.models.graph import GraphNetwork, NodePerceptron, gcn, node_perceptron
from limbeck.objectives import Objective
from limbeck.signals import call
from limbeck.tasks.graphs import GraphClassification, NodeClassification
from limbeck.training import TrainingConfig
from limbeck.training.procedures import Distil, Supervised

if TYPE_CHECKING:
    from limbeck.experiments.run import Run

VERSION = 1  # of how teachers are trained


@functools.lru_cache(maxsize=4)
def _nodes(dataset: str) -> NodeClassification:
    return NodeClassification(dataset)


@functools.lru_cache(maxsize=4)
def _graphs(collection: str) -> GraphClassification:
    return GraphClassification(collection)


class GraphBed(Bed):
    """What both beds share: a subclass is a frozen dataclass with a `task`, a `config` and the `network` that is its teacher."""

    def teacher(self, run: Run) -> GraphNetwork:
        """The graph network of this run's seed, trained once for all arms."""
        key = {"bed": self.digest(), "model": "gcn", "seed": run.seed, "version": VERSION}

        def train(model) -> None:
            run.train(Supervised(model, self.task), self.task, self.config(), counted=False)

        return run.trained(key, self.network, train)

    def reference(self, run: Run) -> dict[str, float]:
        model = self.teacher(run)
        return self.task.evaluate(lambda batch: call(model, batch), run.split)


@dataclass(frozen=True)
class Nodes(GraphBed):
    """Node classification, full batch: the public splits of Cora or Citeseer with few labelled nodes."""

    name: str = "cora"
    width: int = 64
    steps: int = 100
    learning_rate: float = 0.02
    weight_decay: float = 0.5
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"accuracy": (0.79, 0.85)})

    @property
    def task(self) -> NodeClassification:
        return _nodes(self.name)

    def config(self, **changes) -> TrainingConfig:
        """How every model here is trained: all nodes in each step."""
        usual = {
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "decay_norms_and_biases": False,
        }
        return TrainingConfig(**{"steps": self.steps, "batch_size": 1, "schedule": "cosine", **usual, **changes})

    def network(self, dropout: float = 0.5) -> GraphNetwork:
        """The graph network that serves as teacher."""
        return gcn(self.task.features, len(self.task.classes), self.width, dropout=dropout)

    def perceptron(self, dropout: float = 0.5) -> NodePerceptron:
        """A student that sees no edge."""
        return node_perceptron(self.task.features, len(self.task.classes), self.width, dropout=dropout)

    def distil(self, run: Run, objective: Objective, dropout: float = 0.5, teacher: bool = True) -> nn.Module:
        """A perceptron of the run's seed, trained on all nodes; without `teacher` the objective must read none."""
        student = run.fresh(lambda: self.perceptron(dropout))
        run.train(Distil(student, self.teacher(run) if teacher else None, objective), self.task, self.config())
        return student.eval()

    def digest(self) -> str:
        return digest([self.task.digest(), self.width, self.config().identity()])


@dataclass(frozen=True)
class Collections(GraphBed):
    """Classification of whole graphs: MUTAG (molecules) or PROTEINS, with a graph network that takes the mean over nodes."""

    name: str = "mutag"
    width: int = 64
    depth: int = 3
    epochs: int = 60
    learning_rate: float = 0.005
    expects: Mapping[str, tuple[float, float]] = field(default_factory=lambda: {"accuracy": (0.6, 1.0)})

    @property
    def task(self) -> GraphClassification:
        return _graphs(self.name)

    def config(self, **changes) -> TrainingConfig:
        usual = {"epochs": self.epochs, "batch_size": 32, "learning_rate": self.learning_rate}
        return TrainingConfig(**{**usual, **changes})

    def network(self, width: int | None = None) -> GraphNetwork:
        task = self.task
        return gcn(task.features, len(task.classes), width or self.width, self.depth, dropout=0.1, readout=True)

    def digest(self) -> str:
        return digest([self.task.digest(), self.width, self.depth, self.config().identity()])
