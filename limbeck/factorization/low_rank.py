"""LowRank: one weight matrix becomes two thin ones (truncated singular value decomposition).

    W (out, in)  ~  U_r (U_r^T W),    U_r the r leading left singular vectors of W S

    Linear  in -> out          becomes  down: in -> r,  up: r -> out
    Conv2d  k x k, in -> out   becomes  down: k x k, in -> r (its stride, padding, dilation),  up: 1 x 1, r -> out

With S = I this is the truncated SVD, the best rank-r matrix: ||W - W_r||^2 = sum of the squared singular values cut off
(Eckart and Young, 1936). With S S^T = E[x x^T] of the layer's inputs on calibration data it is the best rank-r matrix for the
layer's OUTPUT: E||W x - W_r x||^2 is the sum of the squared singular values of W S cut off (Wang et al., "SVD-LLM", ICLR
2025, without its later parameter update). The two factors are scaled to equal norms per rank, which trains better.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import Plan
from limbeck.pruning.importance import calibration_batches, input_rows, unchanged
from limbeck.pruning.slicing import is_conv1d
from limbeck.signals import Tap, match_paths
from limbeck.tensors import from_text, to_text


class LowRankPair(nn.Sequential):
    """`down` then `up`. `weight` and `bias` read as those of the layer it replaced, for code that looks at them."""

    def __init__(self, down: nn.Module, up: nn.Module):
        super().__init__(OrderedDict(down=down, up=up))

    @property
    def weight(self) -> Tensor:
        """up @ down, of the replaced layer's shape."""
        down, up = self.down.weight, self.up.weight
        return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias


@dataclass(frozen=True)
class LowRank:
    """Truncated singular value decomposition of linear layers and 2-d convolutions.

    Exactly one of
      rank             the same rank everywhere
      energy           the smallest rank that keeps this fraction of the squared singular values; 0.9 if none is given
      keep_parameters  the largest rank at which a layer keeps at most this fraction of its own weights (rank 1 at least)

    data_aware    weigh errors by the layer's inputs on `batches` batches of `batch_size` examples of the train split
    minimum_gain  a layer is factorized only where that saves more than this fraction of its weights
    paths, ignore   path patterns of the layers to take and to leave

    Layers that would not get smaller are left alone and listed with the reason, and so are grouped convolutions and shared
    weights. Raises UsageError for values outside their range and unknown patterns.
    """

    rank: int | None = None
    energy: float | None = None
    keep_parameters: float | None = None
    paths: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    minimum_gain: float = 0.0
    data_aware: bool = False
    batches: int = 8
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "keep_parameters") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UsageError(f"LowRank: give one of rank, energy and keep_parameters, not {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "energy", 0.9)
        for name in ("rank", "batches", "batch_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"LowRank: {name} must be a whole number of at least 1, not {value!r}")
        for name in ("energy", "keep_parameters"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not 0 < value <= 1):
                raise UsageError(f"LowRank: {name} must lie in (0, 1], not {value!r}")
        if not 0 <= self.minimum_gain < 1:
            raise UsageError(f"LowRank: minimum_gain must lie in [0, 1), not {self.minimum_gain!r}")
        for name in ("paths", "ignore"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide the rank of every layer. The model is left as it was found."""
        targets, left = self._targets(model)
        moments = self._moments(model, task, targets) if self.data_aware and targets else {}
        ranks, layers, data = {}, {}, {}
        for path in targets:
            weight = matrix(model.get_submodule(path))
            if path not in moments and self.data_aware:
                left[path] = "it was not called on the calibration data"
                continue
            basis, values = leading(weight, moments.get(path))
            rank = min(self._rank(weight, values), len(values))
            before, after = weight.numel(), rank * sum(weight.shape)
            if after >= before or after > (1 - self.minimum_gain) * before:
                left[path] = f"rank {rank} would take {after} weights instead of {before}"
                continue
            ranks[path] = rank
            error = (values[rank:].square().sum() / values.square().sum().clamp_min(1e-300)).sqrt().item()
            layers[path] = {"before": before, "after": after, "relative_error": error}
            if self.data_aware:
                data[path] = to_text(basis[:, :rank])
        decisions = {"ranks": ranks, "data_aware": self.data_aware, "layers": layers, "left_alone": left}
        return Plan("low_rank", {**decisions, "data": data} if self.data_aware else decisions)

    def _targets(self, model: nn.Module) -> tuple[list[str], dict[str, str]]:
        named = set().union(*(match_paths(model, pattern) for pattern in self.paths))
        ignored = set().union(*(match_paths(model, pattern) for pattern in self.ignore))
        owners: dict[int, int] = {}
        for _, parameter in model.named_parameters(remove_duplicate=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
        targets, left = [], {}
        for path, module in model.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d)) and not is_conv1d(module):
                continue
            inside = any(path == i or path.startswith(i + ".") for i in ignored)
            if path not in named or inside:
                left[path] = "ignored" if inside else "not named by paths"
            elif not _plain(module):
                left[path] = f"a {type(module).__name__} of this form is not factorized"
            elif owners[id(module.weight)] > 1:
                left[path] = "its weight is shared with another module"
            elif not module.weight.any():
                left[path] = "its weight is zero"
            else:
                targets.append(path)
        return targets, left

    def _rank(self, weight: Tensor, values: Tensor) -> int:
        if self.rank is not None:
            return self.rank
        if self.keep_parameters is not None:
            return max(1, int(self.keep_parameters * weight.numel() / sum(weight.shape)))
        kept = values.square().cumsum(0) / values.square().sum()
        return int((kept < self.energy - 1e-12).sum()) + 1

    def _moments(self, model: nn.Module, task: Any, paths: Sequence[str]) -> dict[str, Tensor]:
        batches = calibration_batches(model, task, self)
        modules = dict(model.named_modules())
        total: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        with unchanged(model), torch.no_grad(), Tap(model, {f"{path}:input" for path in paths}) as tap:
            for batch in batches:
                for key, x in tap(batch).items():
                    path = key.removesuffix(":input")
                    rows = read_rows(modules[path], x, batch)
                    total[path] = total.get(path, 0) + rows.T @ rows
                    counts[path] = counts.get(path, 0) + len(rows)
        return {path: total[path] / counts[path] for path in total}


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Replace each planned layer by its two factors.

    A data-aware plan without its bases (from a lineage) builds the factors with NaN in them, so that a model whose weights are
    not loaded afterwards cannot pass for a factorized one. Raises ArtifactError where a layer is missing or too small.
    """
    for path, rank in plan.decisions["ranks"].items():
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise ArtifactError(f"the plan factorizes {path!r}, which this {type(model).__name__} lacks") from None
        if not _plain(module) or not 1 <= rank <= min(matrix(module).shape):
            raise ArtifactError(f"the plan gives {path!r} rank {rank}, which this {type(module).__name__} cannot have")
        basis = None
        if plan.decisions["data_aware"]:
            rows = matrix(module).shape[0]
            text = plan.decisions.get("data", {}).get(path)
            basis = (
                torch.full((rows, rank), torch.nan)
                if text is None
                else from_text(text, (rows, rank), f"the basis of {path!r}")
            )
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, factorized(module, rank, basis))
    return model


def leading(weight: Tensor, second_moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Left singular vectors (out, n) and singular values (n,) of W S in float64, n = min(out, in); S S^T = second_moment.

    Shapes: weight (out, in); second_moment (in, in) or None for S = I. A thousandth of the mean eigenvalue, at least 1e-12, is
    added to the diagonal, so that directions the calibration data never showed still count a little.
    """
    product = weight.double()
    if second_moment is not None:
        moment = second_moment.double()
        ridge = (1e-3 * moment.diagonal().mean()).clamp_min(1e-12)
        eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        product = product @ torch.linalg.cholesky(moment + ridge * eye)
    left, values, _ = torch.linalg.svd(product, full_matrices=False)
    return left, values


def factors(weight: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """up (out, r), down (r, in) with up @ down = basis basis^T weight and equal norms per rank. basis (out, r) orthonormal."""
    basis = basis.to(weight.device, torch.float64)
    down = basis.T @ weight.double()
    scale = down.norm(dim=1).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return basis * scale, down / scale[:, None]


def factorized(module: nn.Module, rank: int, basis: Tensor | None = None) -> LowRankPair:
    """The two layers that replace `module`. basis (out, rank): None takes the leading left singular vectors of its weight."""
    weight = matrix(module)
    if basis is None:
        basis = leading(weight)[0][:, :rank]
    up, down = factors(weight, basis)
    out, read = weight.shape
    kind = {"device": weight.device, "dtype": module.weight.dtype}
    bias = module.bias is not None
    if isinstance(module, nn.Conv2d):
        settings = {n: getattr(module, n) for n in ("stride", "padding", "dilation", "padding_mode")}
        first = nn.Conv2d(module.in_channels, rank, module.kernel_size, bias=False, **settings, **kind)
        second = nn.Conv2d(rank, out, 1, bias=bias, **kind)
    else:
        first, second = nn.Linear(read, rank, bias=False, **kind), nn.Linear(rank, out, bias=bias, **kind)
    with torch.no_grad():
        first.weight.copy_(down.reshape(first.weight.shape))
        second.weight.copy_(up.reshape(second.weight.shape))
        if bias:
            second.bias.copy_(module.bias)
    return LowRankPair(first, second).train(module.training).requires_grad_(module.weight.requires_grad)


def matrix(module: nn.Module) -> Tensor:
    """A layer's weight as (out, everything one output reads), detached."""
    weight = module.weight.detach()
    return weight.T if is_conv1d(module) else weight.flatten(1)


def read_rows(module: nn.Module, x: Tensor, batch: Any) -> Tensor:
    """What the rows of `matrix(module)` are multiplied with, (positions, in) in float64: inputs, or a convolution's patches."""
    if not isinstance(module, nn.Conv2d):
        return input_rows(module, x, batch).double()
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        pads = module._reversed_padding_repeated_twice
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x, padding = F.pad(x, pads, mode=mode), 0
    else:
        padding = module.padding
    patches = F.unfold(x.float(), module.kernel_size, module.dilation, padding, module.stride)
    return patches.movedim(1, 2).flatten(0, 1).double()


def _plain(module: nn.Module) -> bool:
    known = type(module) is nn.Linear or is_conv1d(module) or (type(module) is nn.Conv2d and module.groups == 1)
    return known and type(module._parameters.get("weight")) is nn.Parameter
