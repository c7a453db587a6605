"""What a graph network knows, in two bands: agreement with neighbours (low frequency) and differences from them (high).

Smoothing along edges keeps the low frequencies of a signal on the graph, the difference to the neighbours the high ones. A
perceptron that only matches a graph network's output node by node tends to learn the first and to drown the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.models.graph import flat_edges, normalized_sum
from limbeck.objectives import divergences, positions
from limbeck.objectives.base import Batch, Connectors, Objective
from limbeck.objectives.checks import require_classes, require_positive
from limbeck.signals import LOGITS, Reads, Signals


def low_pass(x: Tensor, edge_index: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 x of nodes (B, N, C) with edges (B, 2, E): the part that varies slowly along edges."""
    return normalized_sum(x.flatten(0, 1), *flat_edges(edge_index, x.shape[1])).reshape(x.shape)


def high_pass(x: Tensor, edge_index: Tensor) -> Tensor:
    """x - low_pass(x): the normalized Laplacian of A + I times x, the part that differs from the neighbours."""
    return x - low_pass(x, edge_index)


@dataclass(frozen=True)
class EdgeTargets(Objective):
    """Base of objectives over edges: mean over the edges of a batch of what a subclass compares at their two ends.

    Reads batch["edge_index"] (B, 2, E), (source, target) with -1 as padding, and logits (B, N, classes) of both. Edges at a
    node whose attention_mask is 0 do not count; `sample_weight` (B,) weights the edges of a graph. All nodes count, labelled
    or not. Raises UsageError without edges or where the shapes of student and teacher differ.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "temperature", self.temperature)

    @property
    def reads(self) -> Reads:
        return Reads(student=frozenset({LOGITS}), teacher=frozenset({LOGITS}))

    def compare(self, student: Tensor, teacher: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """The loss of each edge: logits (nodes, C) of both and the ends (edges,) of edges to (edges,)."""
        raise NotImplementedError

    def edges(self, edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        """The pairs that are compared, as source and target in the flattened (B * nodes)."""
        return flat_edges(edge_index, nodes)

    def compute(self, student: Signals, teacher: Signals, batch: Batch, connectors: Connectors) -> Tensor:
        own, target = student.logits, teacher.logits.detach()
        edge_index = batch.get("edge_index")
        if edge_index is None or edge_index.dim() != 3 or edge_index.shape[1] != 2:
            raise UsageError(f"{self.name} needs batch['edge_index'] of shape (B, 2, E); the batch has {sorted(batch)}")
        if own.shape != target.shape or own.dim() != 3:
            raise UsageError(
                f"{self.name}: student {tuple(own.shape)} and teacher {tuple(target.shape)} must both be (B, N, classes)"
            )
        require_classes(self, own)
        weights = self._node_weights(batch, own.shape[:2])
        own, target = (positions.blank(x, weights).flatten(0, 1) for x in (own, target))
        source, end = self.edges(edge_index, student.logits.shape[1])
        loss = self.compare(own, target, source, end)
        if weights is None:
            return loss.mean() if len(loss) else 0 * own.sum()
        flat = weights.flatten()
        return positions.mean(loss, torch.minimum(flat[source], flat[end]))  # a masked end takes the edge out

    @staticmethod
    def _node_weights(batch: Batch, shape: torch.Size) -> Tensor | None:
        return positions.weights(batch, shape, labels=False)


@dataclass(frozen=True)
class LowFrequency(EdgeTargets):
    """Low-frequency distillation: what the perceptron says at a node is what the graph network says at its neighbours.

    L = mean over edges j -> i, and j = i, of KL(softmax(h_j / T) || softmax(z_i / T))

    h: the teacher's logits, z: the student's. Shapes: (B, N, classes), see `EdgeTargets`.
    Source: Wu et al., "Extracting Low-/High-Frequency Knowledge from Graph Neural Networks and Injecting it into MLPs", AAAI
    2023, eq. 9. The authors' code has no temperature here (T = 1), which is the default; neither has a factor T^2.
    """

    def edges(self, edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        source, target = flat_edges(edge_index, nodes)
        own = torch.arange(len(edge_index) * nodes, device=edge_index.device)
        return torch.cat([source, own]), torch.cat([target, own])

    def compare(self, student: Tensor, teacher: Tensor, source: Tensor, target: Tensor) -> Tensor:
        log_p = divergences.log_probabilities(teacher, self.temperature)
        log_q = divergences.log_probabilities(student, self.temperature)
        return divergences.kl_divergence(log_p[source], log_q[target])


@dataclass(frozen=True)
class HighFrequency(EdgeTargets):
    """High-frequency distillation: the student's two ends of an edge differ in the classes in which the teacher's differ.

    L = mean over edges j -> i of KL(softmax(|h_i - h_j| / T) || softmax(|z_i - z_j| / T)),   softmax over the classes

    h: the teacher's logits, z: the student's; there is no factor T^2. Shapes: (B, N, classes), see `EdgeTargets`.
    Source: Wu et al., AAAI 2023, eq. 10 (see `LowFrequency`). Agrees with the authors' code, where T is about 1.5.
    """

    temperature: float = 1.5

    def compare(self, student: Tensor, teacher: Tensor, source: Tensor, target: Tensor) -> Tensor:
        own, wanted = (positions.precise(x) for x in (student, teacher))
        log_p = divergences.log_probabilities((wanted[target] - wanted[source]).abs(), self.temperature)
        log_q = divergences.log_probabilities((own[target] - own[source]).abs(), self.temperature)
        return divergences.kl_divergence(log_p, log_q)
