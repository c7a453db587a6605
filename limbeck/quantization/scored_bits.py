"""ScoredBits: two widths, the larger one for the layers that a score puts first. What mixtures of experts are quantized by.

outliers      s(W) = max over inputs j of  max_i |W_ij| / mean_i |W_ij|
importance    1 - mean over tokens of cos(x, x + f(x)),   f: a block's feed-forward branch on the residual stream x
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models.layers import Block
from limbeck.models.mixture_of_experts import MixtureOfExperts
from limbeck.plan import Plan
from limbeck.pruning.importance import input_rows
from limbeck.quantization.calibration import evaluating
from limbeck.quantization.hessian import matrix
from limbeck.quantization.mixed_precision import with_bits
from limbeck.quantization.quantize import Quantize
from limbeck.signals import Tap, call, to_device
from limbeck.tasks.custom import CustomTask
from limbeck.training.config import TrainingConfig
from limbeck.training.procedures import Supervised
from limbeck.training.randomness import restored_generators, seed_everything
from limbeck.training.trainer import Trainer

SCORES = ("shared", "first", "usage", "outliers", "importance", "predicted", "random")
DATA = ("usage", "importance", "predicted")


def outlier_score(weight: Tensor) -> float:
    """max over inputs j of max_i |W_ij| / mean_i |W_ij|: weight (out, in). A matrix of zeros has 0.

    Source: Li et al., "QuantMoE-Bench", 2024, the linear layer scorer. The authors' code was read and agrees: maximum and
    mean go over outputs. Inputs without any weight are passed over here; there they give no number.
    """
    size = weight.detach().float().abs()
    mean = size.mean(0)
    return float((size.amax(0)[mean > 0] / mean[mean > 0]).max()) if bool((mean > 0).any()) else 0.0


def highest_first(
    scores: Mapping[str, Sequence[float]], numbers: Mapping[str, int], low: int, high: int, average_bits: float
) -> dict[str, int]:
    """`high` bits for the highest scores, as far as the mean over all weights stays at most `average_bits`; `low` for the rest.

    scores: tuples, compared entry by entry; equals in the order given. numbers: weights of each layer. A layer that no longer fits
    is passed over, and smaller ones after it may still get the larger width. Raises UsageError where `low` itself is too much.
    """
    allowed = average_bits * sum(numbers.values())
    spent = low * sum(numbers.values())
    if spent > allowed:
        raise UsageError(f"average_bits={average_bits} is below the {low} bits that every layer has at least")
    bits = dict.fromkeys(scores, low)
    for path in sorted(scores, key=lambda path: tuple(-s for s in scores[path])):
        more = (high - low) * numbers[path]
        if spent + more <= allowed:
            bits[path], spent = high, spent + more
    return bits


class SimilarityPredictor(nn.Module):
    """tanh(w . relu(V x)): the cosine between a token's state before and after a block, from the state before. (..., D) -> (...)

    Without biases, 1024 hidden units as in the paper.
    """

    def __init__(self, width: int, hidden: int = 1024):
        super().__init__()
        self.first = nn.Linear(width, hidden, bias=False)
        self.last = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.last(self.first(x).relu())).squeeze(-1)


def fit_similarity(states: Tensor, similarity: Tensor, steps: int = 200, seed: int = 0) -> SimilarityPredictor:
    """A predictor trained on states (N, D) and their similarities (N,) by squared error with AdamW, rate 1e-4 x 10, decay 1e-2.

    Deviation from the authors' code: ten times its rate for a few hundred steps, in place of up to 100 epochs with early stopping.
    Leaves the global generators as they were.
    """
    data = {"x": states, "labels": similarity}
    task = CustomTask(
        dict.fromkeys(("train", "validation", "test"), data),
        inputs=("x",),
        loss=lambda answer, target: (answer - target).square().mean(),
        metric=lambda answer, target: float((answer - target).square().mean()),
        better="lower",
        version="of this call",
    )
    config = TrainingConfig(
        steps=steps, batch_size=min(256, len(states)), learning_rate=1e-3, weight_decay=1e-2, augment=False
    )
    with restored_generators(), torch.enable_grad():
        seed_everything(seed)
        model = SimilarityPredictor(states.shape[1])
        Trainer(config, folder=None, seed=seed, progress=False).run(Supervised(model, task), task)
    return model.eval()


@dataclass(frozen=True)
class ScoredBits:
    """`Quantize` with `high` bits for the linear layers of highest score and `low` for the rest, `average_bits` in the mean.

    scores, compared one after another:
        "shared"       layers that every token uses before those of single experts
        "first"        earlier blocks before later ones
        "usage"        experts by the share of tokens that choose them
        "outliers"     `outlier_score` of the weights
        "importance"   blocks by how much their feed-forward branch turns the residual stream, measured
        "predicted"    the same, predicted by a small network trained on the first half of the tokens, on the second half
        "random"       at random, from `seed`
    quantize: everything but the bits; examples, batch_size: what scores are measured on.

    Source: Li et al., "QuantMoE-Bench: Examining Post-Training Quantization for Mixture-of-Experts", 2024, sections 3 and 4.
    Experts are those of our `MixtureOfExperts`; "importance" and "predicted" read our transformer blocks.
    """

    scores: tuple[str, ...] = ("shared", "usage")
    low: int = 2
    high: int = 4
    average_bits: float = 2.5
    quantize: Quantize = field(default_factory=lambda: Quantize(weights=64, activations=None))
    examples: int = 128
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        scores = (self.scores,) if isinstance(self.scores, str) else tuple(self.scores)
        object.__setattr__(self, "scores", scores)
        if not scores or set(scores) - set(SCORES):
            raise UsageError(f"ScoredBits: scores={scores!r}: name one or more of {', '.join(map(repr, SCORES))}")
        if not isinstance(self.quantize, Quantize):
            raise UsageError(f"ScoredBits: quantize={self.quantize!r}: give a Quantize, its bits are not used")
        if not 2 <= self.low < self.high <= 8 or not self.low <= self.average_bits <= self.high:
            raise UsageError(
                f"ScoredBits: low={self.low}, high={self.high}, average_bits={self.average_bits}: 2 <= low <= average_bits <= high <= 8"
            )
        for width in (self.low, self.high):
            dataclasses.replace(self.quantize, bits=width)
        for name in ("examples", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"ScoredBits: {name}={value!r} must be a whole number of at least 1")

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Score every layer and hand out the bits; the model stays as it is."""
        plan = dataclasses.replace(self.quantize, bits=self.low, rounding="nearest").plan(model, task)
        paths = list(plan.decisions["modules"])
        numbers = {path: model.get_submodule(path).weight.numel() for path in paths}
        if task is None and set(self.scores) & set(DATA):
            raise UsageError(
                f"ScoredBits: {self.scores!r} are measured on a task's train split and no task was given: pass one"
            )
        columns = [self._score(name, model, task, paths) for name in self.scores]
        scores = {path: tuple(column[path] for column in columns) for path in paths}
        bits = highest_first(scores, numbers, self.low, self.high, self.average_bits)
        return with_bits(self.quantize, model, task, plan, bits, scores={path: list(s) for path, s in scores.items()})

    def _score(self, name: str, model: nn.Module, task: Any, paths: Sequence[str]) -> dict[str, float]:
        if name == "shared":
            return {path: float(_expert(model, path) is None) for path in paths}
        if name == "first":
            return {path: -float(min(map(int, re.findall(r"(?<!\w)\d+(?!\w)", path)[:1]), default=0)) for path in paths}
        if name == "outliers":
            modules = {path: model.get_submodule(path) for path in paths}
            return {path: outlier_score(matrix(m)) for path, m in modules.items()}
        if name == "random":
            draws = torch.rand(len(paths), generator=torch.Generator().manual_seed(self.seed)).tolist()
            return dict(zip(paths, draws))
        if name == "usage":
            used = self.usage(model, task)
            found = {path: _expert(model, path) for path in paths}
            return {path: 1.0 if at is None else used[at[0]][at[1]] for path, at in found.items()}
        similar = self.similarity(model, task, name == "predicted")
        return {
            path: next((1 - value for block, value in similar.items() if path.startswith(block + ".")), 0.0)
            for path in paths
        }

    def usage(self, model: nn.Module, task: Any) -> dict[str, list[float]]:
        """The share of tokens that choose each expert, by path of the mixture."""
        mixtures = {path: m for path, m in model.named_modules() if isinstance(m, MixtureOfExperts)}
        chosen = {path: torch.zeros(len(m.experts)) for path, m in mixtures.items()}
        tokens = dict.fromkeys(mixtures, 0)
        for path, rows in self._rows(model, task, [f"{path}.router" for path in mixtures]):
            owner = path.removesuffix(".router")
            picked = rows.topk(mixtures[owner].top, -1).indices
            chosen[owner] += torch.bincount(picked.flatten(), minlength=len(chosen[owner])).cpu()
            tokens[owner] += len(rows)
        return {path: (count / max(tokens[path], 1)).tolist() for path, count in chosen.items()}

    def similarity(self, model: nn.Module, task: Any, predicted: bool) -> dict[str, float]:
        """Mean cosine of every block's residual stream before and after its feed-forward branch, by path of the block."""
        blocks = [path for path, module in model.named_modules() if type(module) is Block]
        if not blocks:
            raise UsageError(
                f"ScoredBits: {type(model).__name__} has no transformer block of limbeck to measure importance of"
            )
        names = [f"{path}.{name}" for path in blocks for name in ("norm2:input", "feed_forward")]
        seen: dict[str, list[Tensor]] = {}
        for path, rows in self._rows(model, task, names):
            seen.setdefault(path, []).append(rows)
        found = {}
        for block in blocks:
            x, branch = (torch.cat(seen[f"{block}.{name}"]) for name in ("norm2:input", "feed_forward"))
            cosine = F.cosine_similarity(x, x + branch, dim=-1)
            if predicted:
                half = len(x) // 2
                predictor = fit_similarity(x[:half].cpu(), cosine[:half].cpu(), seed=self.seed)
                with torch.no_grad():
                    cosine = predictor(x[half:].cpu())
            found[block] = float(cosine.mean())
        return found

    def _rows(self, model: nn.Module, task: Any, names: Sequence[str]) -> Any:
        """(name, rows (positions, features)) of every signal and batch, padding left out."""
        with evaluating(model) as device, torch.no_grad():
            for given in task.batches("train", self.batch_size, limit=self.examples):
                batch, found = to_device(given, device), []

                def visit(name: str, value: Tensor, batch=batch, found=found) -> None:
                    found.append((name, input_rows(model, value, batch)))

                with Tap(model, names, visit):
                    call(model, batch)
                yield from found


def _expert(model: nn.Module, path: str) -> tuple[str, int] | None:
    """(path of the mixture, number of the expert) that a layer belongs to; None for layers that every token uses."""
    owner, mark, rest = path.rpartition(".experts.")
    if mark and isinstance(model.get_submodule(owner), MixtureOfExperts):
        return owner, int(rest.partition(".")[0])
    return None
