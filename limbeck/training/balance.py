"""Balance: how the terms of a sum weigh against each other while they are trained.

Terms of a sum may lie orders of magnitude apart: a squared norm of a whole map beside a cross-entropy. With weights as given the larger
one decides alone. A balance finds a factor f_i for each term as training goes, and L = sum_i w_i f_i L_i is minimized: the weights
w_i then say how much each term counts, whatever its scale.

    "fixed"           f_i = 1
    "gradient_norm"   all terms pull at the student with the same force
    "uncertainty"     learned factors: the less a term can be reduced, the less it counts

What a balance has learned is a module of the procedure, so checkpoints hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError, did_you_mean

LARGEST = 1e6  # of all factors, and one over it the smallest


def gradient_norms(values: Sequence[Tensor], parameters: Iterable[nn.Parameter]) -> Tensor:
    """|dL_i / d parameters| of scalars (n,), over all parameters together; 0 where a scalar does not depend on them.

    The graph is kept and no parameter's gradient is touched.
    """
    parameters = [p for p in parameters if p.requires_grad]
    norms = []
    for value in values:
        gradients = [None]
        if value.requires_grad:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        found = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients if g is not None]
        norms.append(torch.stack(found).norm() if found else torch.zeros((), device=value.device))
    return torch.stack(norms)


class Weigher(nn.Module):
    """The state of a balance over `terms` terms. `combine` gives the loss of a piece of a batch; `settle` ends the step."""

    def __init__(self, terms: int):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))  # how often something was taken in
        self.register_buffer("running", torch.zeros(terms))
        self._fresh: list[Tensor] = []  # of this step, one per piece

    def factors(self, running: Tensor) -> Tensor:
        """f_i (n,) that follow from the running numbers (n,)."""
        raise NotImplementedError

    def look(self, values: Sequence[Tensor], parameters: Sequence[nn.Parameter], step: int) -> None:
        """Note what this piece says, in `_fresh`."""
        raise NotImplementedError

    def combine(
        self, values: Sequence[Tensor], weights: Sequence[float], parameters: Sequence[nn.Parameter], step: int
    ) -> tuple[Tensor, Tensor]:
        """sum_i w_i f_i L_i and the factors f_i, detached. The first step's pieces are balanced by themselves."""
        self.look(values, parameters, step)
        running = self.running if float(self.seen) or not self._fresh else self._fresh[-1]
        factors = self.factors(running)
        return self.total(values, weights, factors), factors.detach()

    def total(self, values: Sequence[Tensor], weights: Sequence[float], factors: Tensor) -> Tensor:
        return sum(w * f * v.to(torch.promote_types(v.dtype, f.dtype)) for w, f, v in zip(weights, factors, values))

    def absorb(self, fresh: Tensor) -> Tensor:
        """The running numbers with a step's mean taken in."""
        raise NotImplementedError

    @torch.no_grad()
    def settle(self) -> None:
        """Take in the step: the mean over its pieces and, where several processes train, over them."""
        if not self._fresh:
            return
        fresh, self._fresh = torch.stack(self._fresh).mean(0), []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(fresh)
            fresh /= torch.distributed.get_world_size()
        if bool(fresh.isfinite().all()):
            self.running.copy_(self.absorb(fresh))
            self.seen += 1


@dataclass(frozen=True)
class GradientNormBalance:
    """All terms pull at the student with the force of the first one, so the weights alone say how much each counts.

    f_i = n_1 / n_i,   n_i = running mean of |dL_i / d theta|,   theta: the student's trained parameters

    The first term's factor is 1, so a learning rate that suits it stays right. every: steps between two measurements, each of which
    costs one more backward pass per term. decay: of the running mean. Factors lie between 1e-6 and 1e6; a term without gradient has the
    factor 1. With gradient accumulation the norms are those of the pieces.

    Source: the aim of Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML 2018,
    with alpha = 0. Deviation: the factors are computed, not learned by gradient steps on |n_i - mean n|, and the norm is that of all
    parameters, not of the last shared layer; the ratio of two norms is the adaptive weight of Esser et al., CVPR 2021, eq. 7.
    """

    every: int = 10
    decay: float = 0.9

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise UsageError(f"GradientNormBalance: every={self.every!r} must be a whole number of at least 1")
        if isinstance(self.decay, bool) or not isinstance(self.decay, (int, float)) or not 0 <= self.decay < 1:
            raise UsageError(f"GradientNormBalance: decay={self.decay!r} must be in [0, 1)")

    def weigher(self, terms: int) -> Weigher:
        return _GradientNorms(self, terms)


class _GradientNorms(Weigher):
    def __init__(self, settings: GradientNormBalance, terms: int):
        super().__init__(terms)
        self.settings = settings

    def look(self, values: Sequence[Tensor], parameters: Sequence[nn.Parameter], step: int) -> None:
        if torch.is_grad_enabled() and (step % self.settings.every == 0 or not float(self.seen)):
            self._fresh.append(gradient_norms(values, parameters))

    def factors(self, running: Tensor) -> Tensor:
        known = running > 0
        first = running[known][0] if bool(known.any()) else running.new_ones(())
        ratio = first / torch.where(known, running, first)
        return ratio.clamp(1 / LARGEST, LARGEST)

    def absorb(self, fresh: Tensor) -> Tensor:
        decay = self.settings.decay if float(self.seen) else 0.0
        return decay * self.running + (1 - decay) * fresh


@dataclass(frozen=True)
class UncertaintyBalance:
    """Learned factors: each term has a log-variance s_i, trained beside the student.

    L = sum_i w_i (exp(-s_i) L_i + s_i),   s_i = log L_i(first step) + theta_i,   theta_i = 0 at first

    At its optimum s_i = log L_i: every term counts by its relative change. Terms start out equal, however far apart, because s_i starts
    at its optimum for the first batch; so the total is no measure of quality (it may fall below 0), the parts are. theta is trained by
    the student's optimizer. Raises UsageError for a term that is negative at first: its variance would shrink without end.

    Source: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics", CVPR 2018,
    eq. 7 with s = log sigma^2, times 2. Deviation: the start; the paper's is s_i = 0 (`data_start=False`).
    """

    data_start: bool = True

    def weigher(self, terms: int) -> Weigher:
        return _Uncertainties(self, terms)


class _Uncertainties(Weigher):
    def __init__(self, settings: UncertaintyBalance, terms: int):
        super().__init__(terms)
        self.settings = settings
        self.theta = nn.Parameter(torch.zeros(terms))

    def look(self, values: Sequence[Tensor], parameters: Sequence[nn.Parameter], step: int) -> None:
        if float(self.seen):
            return
        found = torch.stack([value.detach().float() for value in values])
        if bool((found < 0).any()):
            raise UsageError(
                f"balance by uncertainty needs losses that are never negative; those of the first step are {found.tolist()}: "
                "use balance='gradient_norm'"
            )
        positive = self.settings.data_start & (found > 0)
        self._fresh.append(torch.where(positive, found, 1.0).log())

    def factors(self, running: Tensor) -> Tensor:
        return (-(running + self.theta)).exp()

    def total(self, values: Sequence[Tensor], weights: Sequence[float], factors: Tensor) -> Tensor:
        return super().total(values, weights, factors) - sum(w * f.log() for w, f in zip(weights, factors))

    def absorb(self, fresh: Tensor) -> Tensor:
        return fresh


BALANCES = {"fixed": None, "gradient_norm": GradientNormBalance, "uncertainty": UncertaintyBalance}


def require_terms(objective: Any, balance: Any) -> list[int]:
    """The places of the terms that count in an objective (none for a single one). UsageError for a balance of fewer than two."""
    counted = [index for index, (_, weight) in enumerate(getattr(objective, "terms", ())) if weight]
    if balance is not None and len(counted) < 2:
        raise UsageError(f"balance: {objective.name} is a single term; there is nothing to balance it with")
    return counted


def as_balance(value: Any) -> Any:
    """A balance from its word, as it is, or None for fixed weights. Raises UsageError for anything else."""
    if value is None or callable(getattr(value, "weigher", None)):
        return value
    if not isinstance(value, str) or value not in BALANCES:
        raise UsageError(f"balance={value!r} is unknown. {did_you_mean(str(value), BALANCES)}")
    made = BALANCES[value]
    return made() if made else None
