"""Learning an index from scores: the quantized documents keep the order that the dense ones give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, Objective
from limbeck.retrieval.index import QuantizedIndex
from limbeck.signals import Signals
from limbeck.training.procedures import Losses, Procedure, State, describe


class DistilIndex(Procedure):
    """Train centroids and codebooks of a `QuantizedIndex` so that its scores follow those of the dense vectors.

        teacher  s_T = <q, d>         student by list  <R q, c(d)>,   by code  <R q, c(d) + PQ(R d - c(d))>
        loss = L(by code, s_T) + w L(by list, s_T)

    over, for every query of the batch, the same candidates D: all documents that the batch's queries were given. A query's own are
    batch["own"] (B,), `hard` of its `top` nearest dense documents, drawn anew each time, and `random` of all. w makes both losses equal
    on the example batch that training starts with, where `list_weight` is None.

    temperature: T divides all scores, and the squared distances of the soft choice of codes too: that is the paper's T = 1 for vectors that
    are 1 / sqrt(T) times as long. Unit vectors need T well below 1.
    objective: compares (B, |D|) scores of student and teacher, such as SoftTargets(temperature) for the listwise
    cross-entropy of the paper, softmax(s_T / T) against log softmax(s_S / T): the same gradient times T^2. An objective that reads
    batch["labels"] (CrossEntropy) finds there each query's own document among D: the contrastive loss.
    Batches: queries (B, D), own (B,). Source: Xiao et al., "Distill-VQ", SIGIR 2022, eq. 5 to 9 and section 3.3.
    Agrees with the authors' code in scores, straight-through choice, fixed rotation and fixed lists; theirs adds 1e-6 inside the
    logarithm, which we do not.
    """

    def __init__(
        self,
        index: QuantizedIndex,
        documents: Tensor,
        objective: Objective,
        top: int = 200,
        hard: int = 16,
        random: int = 16,
        temperature: float = 1.0,
        list_weight: float | None = None,
        centroid_rate: float = 10.0,
    ):
        if not 0 <= hard <= top <= len(documents) or not 0 <= random <= len(documents) or hard + random < 1:
            raise UsageError(
                f"DistilIndex: hard={hard} of top={top} and random={random} must fit {len(documents)} documents and each other"
            )
        if temperature <= 0 or centroid_rate <= 0:
            raise UsageError(
                f"DistilIndex: temperature={temperature!r}, centroid_rate={centroid_rate!r} must be above 0"
            )
        self.index, self.documents, self.objective = index, documents, objective
        self.top, self.hard, self.random = top, hard, random
        self.temperature, self.list_weight, self.centroid_rate = temperature, list_weight, centroid_rate
        self.modules = {"centroids": Held(index.centroids), "codebooks": Held(index.codebooks)}

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {"main": ("codebooks",), "centroids": ("centroids",)}

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"centroids": self.centroid_rate}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        self.index.to(device)
        self.documents = self.documents.to(device)
        if self.list_weight is None:
            with torch.no_grad():
                code, by_list = self.losses(batch)
            self.list_weight = float(code.value / by_list.value.clamp_min(1e-12))

    def candidates(self, queries: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The documents D (|D|,) of a batch, each once, and where each query's own is among them (B,)."""
        found = [own]
        if self.hard:
            near = (queries @ self.documents.T).topk(self.top).indices
            drawn = torch.rand(near.shape, device=near.device).topk(self.hard).indices
            found.append(near.gather(1, drawn).flatten())
        if self.random:
            found.append(torch.randint(len(self.documents), (self.random,), device=own.device))
        chosen, place = torch.cat(found).unique(return_inverse=True)
        return chosen, place[: len(own)]

    def losses(self, batch: Mapping[str, Any]) -> tuple[Loss, Loss]:
        """The loss of the scores by code, and of those by list."""
        queries = batch["queries"]
        rows, place = self.candidates(queries, batch["own"])
        documents = self.documents[rows]
        teacher = Signals({"logits": queries @ documents.T / self.temperature})
        centres, quantized = self.index.reconstruct(documents, rows, self.temperature)
        rotated = queries @ self.index.rotation / self.temperature
        labelled = {"labels": place}
        code, by_list = (
            self.objective(Signals({"logits": rotated @ x.T}), teacher, labelled) for x in (quantized, centres)
        )
        return code, by_list

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        code, by_list = self.losses(batch)
        parts = {f"code.{k}": v for k, v in code.parts.items()} | {f"list.{k}": v for k, v in by_list.parts.items()}
        both = code.value + self.list_weight * by_list.value
        return {"main": Loss(code.value, {}), "centroids": Loss(both, parts)}  # lists do not depend on codebooks

    def after_step(self, state: State) -> None:
        if state.step + 1 == state.steps:
            self.index.assign(self.documents)

    def model(self) -> nn.Module | None:
        return None

    def describe(self) -> Any:
        return {
            "procedure": type(self).__name__,
            "objective": describe(self.objective),
            "candidates": [self.top, self.hard, self.random],
            "temperature": self.temperature,
        }


class Held(nn.Module):
    """A parameter as a module, so that an optimizer of its own may hold it."""

    def __init__(self, value: nn.Parameter):
        super().__init__()
        self.value = value
