"""Meta-distillation: train a student so that one step towards several experts' features, without labels, adapts it to a new domain."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.measure.latency import evaluating
from limbeck.models.layers import Block, check_sizes
from limbeck.objectives.base import Loss
from limbeck.objectives.divergences import mean_squared_error
from limbeck.training.procedures import Losses, Procedure, State

Change = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def one_step(module: nn.Module, loss: Tensor, rate: float, higher: bool = False) -> dict[str, Tensor]:
    """theta - rate d loss / d theta of every parameter, by name; the module stays as it is.

    higher: whether a gradient may flow through the step (second order), as meta-learning needs. Use with `torch.func.functional_call`.
    """
    named = dict(module.named_parameters())
    slopes = torch.autograd.grad(loss, list(named.values()), create_graph=higher)
    return {name: value - rate * slope for (name, value), slope in zip(named.items(), slopes)}


class Aggregator(nn.Module):
    """Features of K experts of each example to one: a pre-norm transformer block over the experts, then their mean.

    `forward(features)`: (B, K, D) -> (B, D). The order of the experts does not matter.
    """

    def __init__(self, width: int, heads: int = 16, dropout: float = 0.1):
        super().__init__()
        check_sizes("Aggregator", width, heads, dropout)
        self.block = Block(width, heads, 2 * width, dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.block(features).mean(1)


class MetaDistil(Procedure):
    """A student and an aggregator learn together that a step towards the aggregated experts helps.

        support, query: the two halves of a batch of one domain d;   A(x) = aggregator(features of all experts but d's)
        theta' = theta - rate grad mean |f(x; theta) - A(x)|^2 / D over the support, no labels
        L = CE(head(f(x; theta'))) over the query, for student and aggregator, through the step

    student: a module with the submodules `features` and `head`; features are flattened. experts: one trained module per domain, of the same
    kind, frozen. domains: one per expert, batch -> batch as it looks in that domain; each step draws one. rate: of the inner step. slow:
    the aggregator's learning rate over the student's. meta False: both are first taught plainly, CE(head(f(x))) + CE(head(A(x))).
    After training `adapt` takes the inner step on a new domain.

    The student must keep no running statistics (group or layer normalization). Raises UsageError for that, or numbers that do not fit.
    Source: Zhong et al., "Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from Mixture-of-Experts", NeurIPS 2022, algorithm 1; the
    authors' code has the same step, and its distance too is a mean over examples and features.
    """

    def __init__(
        self,
        student: nn.Module,
        aggregator: Aggregator,
        experts: Sequence[nn.Module],
        domains: Sequence[Change],
        rate: float = 1e-2,
        slow: float = 0.01,
        meta: bool = True,
        features: str = "features",
        head: str = "fc",
    ):
        if len(experts) < 3 or len(domains) != len(experts):
            raise UsageError(
                f"MetaDistil: {len(experts)} experts and {len(domains)} domains: one each, three or more, since a domain's own is left out"
            )
        if not (math.isfinite(rate) and rate > 0 and math.isfinite(slow) and slow > 0):
            raise UsageError(f"MetaDistil: rate={rate!r} and slow={slow!r} must be positive finite numbers")
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules()):
            raise UsageError(
                "MetaDistil: the student has batch normalization; use a network with group or layer normalization"
            )
        self.student, self.aggregator, self.domains = student, aggregator, tuple(domains)
        self.experts = [expert.eval().requires_grad_(False) for expert in experts]
        self.rate, self.slow, self.meta, self.paths = rate, slow, meta, (features, head)
        self.modules = {"student": student, "aggregator": aggregator}

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {"student": ("student",), "aggregator": ("aggregator",)}

    @property
    def learning_rates(self) -> dict[str, float]:
        return {"aggregator": self.slow if self.meta else 1.0}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        for expert in self.experts:
            expert.to(device)

    def _known(self, images: Tensor, without: int | None) -> Tensor:
        """Features of the experts (B, K, D), without gradient."""
        chosen = [expert for at, expert in enumerate(self.experts) if at != without]
        with torch.no_grad():
            return torch.stack([expert.get_submodule(self.paths[0])(images).flatten(1) for expert in chosen], 1)

    def inner(self, images: Tensor, without: int | None = None) -> Tensor:
        """The loss of the inner step: the student's distance from the aggregated experts."""
        own = self.student.get_submodule(self.paths[0])(images).flatten(1)
        return mean_squared_error(own, self.aggregator(self._known(images, without))).mean()

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        domain = int(torch.randint(len(self.domains), ()))
        seen = self.domains[domain](batch)
        images, labels = seen["pixel_values"], seen["labels"]
        features, head = (self.student.get_submodule(path) for path in self.paths)
        if not self.meta:
            own = F.cross_entropy(head(features(images).flatten(1)).float(), labels)
            taught = F.cross_entropy(head(self.aggregator(self._known(images, domain))).float(), labels)
            loss = Loss(own + taught, {"student": own.detach(), "aggregator": taught.detach()})
            return {"student": loss, "aggregator": loss}
        half = len(images) // 2
        inner = self.inner(images[:half], domain)
        moved = one_step(features, inner, self.rate, higher=True)
        answer = head(functional_call(features, moved, (images[half:],)).flatten(1))
        outer = F.cross_entropy(answer.float(), labels[half:])
        loss = Loss(outer, {"query": outer.detach(), "inner": inner.detach()})
        return {"student": loss, "aggregator": loss}

    def adapt(self, images: Tensor) -> nn.Module:
        """A copy of the student after one inner step on unlabelled images of a new domain, with all experts."""
        with evaluating(self.aggregator), torch.enable_grad():
            moved = one_step(self.student.get_submodule(self.paths[0]), self.inner(images), self.rate)
        made = copy.deepcopy(self.student)
        made.get_submodule(self.paths[0]).load_state_dict({k: v.detach() for k, v in moved.items()}, strict=False)
        return made.eval()

    def describe(self) -> Any:
        settings = {"rate": self.rate, "slow": self.slow, "meta": self.meta, "domains": len(self.domains)}
        return {"procedure": "MetaDistil", **settings}
