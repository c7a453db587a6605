"""Fewer experts: while a mixture runs, tokens whose first expert outweighs the second by far are computed by the first alone.

    expert 2 is left out where  w_2 < t w_1     t: of each mixture, a quantile of w_2 / w_1 on calibration data, the median by default

The first expert then has weight 1. In every sequence the tokens of the highest importance keep all their experts:

    s_j = |h_j|_1 / (L - j)  sum over queries q >= j of  A_qj       A: attention, mean over heads;  h: what enters the mixture

what a token receives from later ones, over how many these are. Mixtures are those where this costs least.

Source: Huang et al., "MC-MoE: Mixture Compressor for Mixture-of-Experts LLMs Gains More", ICLR 2025, section 3.3 (t the median, 2 % of the
tokens protected, the ten layers of least loss, while the prompt is read). The authors' code was read: it sums attention over keys, which gives
1 for every query, so that only position and norm are left of the score; here it is the paper's formula. Theirs protects floor(share x L)
tokens, here it is the next whole number up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.measure.latency import evaluating
from limbeck.models.mixture_of_experts import MixtureOfExperts
from limbeck.objectives.divergences import kl_divergence, log_probabilities
from limbeck.objectives.positions import mean, weights
from limbeck.pruning.importance import input_rows
from limbeck.signals import Tap, call, first_tensor, to_device


def received_attention(attention: Tensor) -> Tensor:
    """What every position receives from those that can see it, in the mean: attention (B, heads, L, L), rows sum to 1, causal. (B, L)"""
    length = attention.shape[-1]
    return attention.float().mean(1).sum(1) / torch.arange(length, 0, -1, device=attention.device)


def token_importance(attention: Tensor, hidden: Tensor) -> Tensor:
    """s of the module: attention (B, heads, L, L), hidden (B, L, width) -> (B, L)."""
    return received_attention(attention) * hidden.float().abs().sum(-1)


def keep_one(weight: Tensor, dropped: Tensor) -> Tensor:
    """Routing weights (N, top), falling, with the second and later ones of the rows `dropped` (N,) at 0 and the first at 1."""
    alone = torch.zeros_like(weight)
    alone[:, 0] = 1.0
    return torch.where(dropped[:, None], alone, weight)


class FewerExperts:
    """Inside `with FewerExperts(model, thresholds):` the mixtures named in `thresholds` leave out experts; after it they are as before.

    thresholds: {path of a mixture: t}, see `expert_thresholds`. protect: the share of the tokens of each sequence that keep all experts.
    random: a seed; then t is the share of tokens, drawn at random, that are left with one expert. `saved`: the share of expert calls left out
    so far, of all calls of all mixtures of the model.

    Raises UsageError for paths that are no limbeck `MixtureOfExperts` of two experts per token, a share outside [0, 1), and, with
    protect, mixtures that are no feed-forward layer of a transformer block, whose attention would be read.
    """

    def __init__(
        self, model: nn.Module, thresholds: Mapping[str, float], protect: float = 0.02, random: int | None = None
    ):
        modules = dict(model.named_modules())
        if not 0 <= protect < 1:
            raise UsageError(f"FewerExperts: protect={protect!r} must lie in [0, 1)")
        self.attention: dict[str, nn.Module] = {}
        for path, threshold in thresholds.items():
            mixture = modules.get(path)
            if not isinstance(mixture, MixtureOfExperts) or mixture.top != 2:
                raise UsageError(f"FewerExperts: {path!r} is no mixture with two experts per token")
            if not threshold >= 0:
                raise UsageError(f"FewerExperts: the threshold {threshold!r} of {path!r} must be at least 0")
            attention = modules.get(f"{path.rpartition('.')[0]}.attention.weights")
            if protect and attention is None:
                raise UsageError(f"FewerExperts: {path!r} is in no block with attention, so no token can be protected")
            self.attention[path] = attention
        self.mixtures = {path: m for path, m in modules.items() if isinstance(m, MixtureOfExperts)}
        self.thresholds, self.protect = dict(thresholds), protect
        self.draws = None if random is None else torch.Generator().manual_seed(random)
        self.left_out = self.calls = 0
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    @property
    def saved(self) -> float:
        return self.left_out / max(self.calls, 1)

    def __enter__(self) -> FewerExperts:
        for path, module in self.attention.items():
            if self.protect:
                self._handles.append(module.register_forward_hook(self._watch(path)))
        for path, mixture in self.mixtures.items():
            mixture.__dict__["choose"] = self._choose(path, mixture)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for mixture in self.mixtures.values():
            mixture.__dict__.pop("choose", None)
        self._handles.clear()
        self._seen.clear()

    def _watch(self, path: str):
        def hook(module: nn.Module, given: Any, attention: Tensor) -> None:
            self._seen[path] = attention.detach()

        return hook

    def _choose(self, path: str, mixture: MixtureOfExperts):
        def choose(x: Tensor) -> tuple[Tensor, Tensor]:
            weight, chosen = MixtureOfExperts.choose(mixture, x)
            self.calls += weight.numel()
            if path not in self.thresholds:
                return weight, chosen
            if self.draws is None:
                dropped = weight[:, 1] < self.thresholds[path] * weight[:, 0]
            else:
                dropped = (torch.rand(len(weight), generator=self.draws) < self.thresholds[path]).to(weight.device)
            if self.protect:
                dropped = dropped & ~self._protected(path, x)
            self.left_out += int(dropped.sum())
            return keep_one(weight, dropped), chosen

        return choose

    def _protected(self, path: str, x: Tensor) -> Tensor:
        """Which tokens of x (B, L, width) are among the most important of their sequence, (B L,); none while single tokens are decoded."""
        attention = self._seen.pop(path)
        if attention.shape[-2] != attention.shape[-1]:
            return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device).flatten()
        score = token_importance(attention, x.reshape(attention.shape[0], attention.shape[-1], -1))
        count = math.ceil(self.protect * score.shape[1])
        best = score.topk(count, dim=1).indices
        return torch.zeros_like(score, dtype=torch.bool).scatter(1, best, True).flatten()


@torch.no_grad()
def expert_thresholds(
    model: nn.Module,
    task: Any,
    layers: int | None = None,
    share: float | Mapping[str, float] = 0.5,
    protect: float = 0.02,
    examples: int = 64,
    batch_size: int = 32,
) -> dict[str, float]:
    """t of the `layers` mixtures (None: all) whose answers change least when they leave out experts, by KL; of mixtures with two per token.

    share: the quantile of w_2 / w_1 that t is, for all, or by path. Measured on examples of the train split. Raises UsageError for a model
    without such a mixture and a share outside [0, 1], DataError where the split is empty.
    """
    paths = [path for path, m in model.named_modules() if isinstance(m, MixtureOfExperts) and m.top == 2]
    if not paths:
        raise UsageError(f"expert_thresholds: {type(model).__name__} has no mixture with two experts per token")
    shares = dict(share) if isinstance(share, Mapping) else dict.fromkeys(paths, share)
    if set(shares) - set(paths) or not all(0 <= value <= 1 for value in shares.values()):
        raise UsageError(f"expert_thresholds: share={share!r}: numbers of 0 to 1, by paths among {paths}")
    paths = [path for path in paths if path in shares]
    ratios: dict[str, list[Tensor]] = {path: [] for path in paths}
    device = next(model.parameters()).device
    with evaluating(model):
        batches = [to_device(b, device) for b in task.batches("train", batch_size, limit=examples)]
        if not batches:
            raise DataError("the train split gave no batch to calibrate on")
        for batch in batches:
            seen: list[tuple[str, Tensor]] = []
            with Tap(model, [f"{path}:input" for path in paths], lambda *pair, kept=seen: kept.append(pair)):
                call(model, batch)
            for name, value in seen:
                path = name.removesuffix(":input")
                weight = model.get_submodule(path).choose(input_rows(model, value, batch))[0]
                ratios[path].append(weight[:, 1] / weight[:, 0])
        found = {path: float(torch.cat(ratios[path]).quantile(shares[path])) for path in paths}
        if layers is None or layers >= len(found):
            return found
        losses = {path: _loss(model, batches, {path: found[path]}, protect) for path in paths}
    best = sorted(paths, key=losses.__getitem__)[:layers]
    return {path: found[path] for path in paths if path in best}


def _loss(model: nn.Module, batches: Iterable[Any], thresholds: Mapping[str, float], protect: float) -> float:
    """KL of the answers with these mixtures leaving out experts, summed over batches."""
    total = 0.0
    for batch in batches:
        usual = log_probabilities(first_tensor(call(model, batch)))
        with FewerExperts(model, thresholds, protect):
            changed = log_probabilities(first_tensor(call(model, batch)))
        divergence = kl_divergence(usual, changed)
        total += float(mean(divergence, weights(batch, divergence.shape)))
    return total
