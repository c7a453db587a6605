"""Activation ranges, from a few batches of the train split.

Ranges are collected in one streaming pass: per tensor, the exact smallest and largest value and a histogram whose bins
double in width (neighbours are merged, nothing is lost but resolution) whenever a value falls outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import DataError, UsageError
from limbeck.quantization.grids import IntegerGrid, affine
from limbeck.signals import Tap, call, to_device

METHODS = ("minmax", "percentile", "mse")


class Histogram:
    """A streaming histogram over [-width, width] with exact extremes.

    `bins` is even; bin i covers [-width + i w, -width + (i + 1) w), w = 2 width / bins.
    """

    def __init__(self, bins: int = 4096):
        self.counts = torch.zeros(bins, dtype=torch.float64)
        self.width = 0.0
        self.low = torch.inf
        self.high = -torch.inf

    def update(self, x: Tensor) -> None:
        """Count the values of x, any shape. Raises DataError for NaN or infinity."""
        if x.numel() == 0:
            return
        x = x.detach().float().flatten()
        low, high = (value.item() for value in torch.aminmax(x))
        if not (abs(low) < torch.inf and abs(high) < torch.inf):
            raise DataError("an activation is NaN or infinite during calibration; check the model's weights and inputs")
        self.low, self.high = min(self.low, low), max(self.high, high)
        extent = max(-low, high, 1e-30)
        if self.width == 0.0:
            self.width = extent
        while self.width < extent:
            self._double()
        self.counts += torch.histc(x, len(self.counts), -self.width, self.width).double().cpu()

    def _double(self) -> None:
        half = len(self.counts) // 4
        merged = self.counts.view(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[half : half + len(merged)] = merged
        self.width *= 2

    @property
    def centers(self) -> Tensor:
        """Middle of every bin, (bins,)."""
        step = 2 * self.width / len(self.counts)
        return -self.width + step * (torch.arange(len(self.counts), dtype=torch.float64) + 0.5)

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that cuts (100 - percent) % off at either end, inside the extremes, to a bin's width."""
        share = self.counts.cumsum(0) / self.counts.sum()
        step = 2 * self.width / len(self.counts)
        tail = 1.0 - percent / 100.0
        upper = -self.width + step * (int(torch.searchsorted(share, torch.tensor(1.0 - tail).double())) + 1)
        lower = -self.width + step * int(torch.searchsorted(share, torch.tensor(tail).double(), right=True))
        return max(lower, self.low), min(upper, self.high)

    def least_error(self, grid: IntegerGrid, candidates: int = 32, smallest: float = 0.2) -> tuple[float, float]:
        """The range (a low, b high), a and b in {1, ..., smallest}, with the least squared error of the histogram on the grid."""
        seen = self.counts > 0
        counts, centers = self.counts[seen].float(), self.centers[seen].float()
        fractions = torch.linspace(1.0, smallest, candidates)
        best = (min(self.low, 0.0), max(self.high, 0.0))
        for side in (1, 0, 1):  # coordinate descent: high, low, high again
            if best[side] == 0.0:
                continue
            trial = [torch.full_like(fractions, best[0]), torch.full_like(fractions, best[1])]
            trial[side] = fractions * (self.high if side else self.low)
            scale, zero = affine(trial[0], trial[1], grid)
            codes = (torch.round(centers / scale[:, None]) + zero[:, None]).clamp(grid.low, grid.high)
            error = (((codes - zero[:, None]) * scale[:, None] - centers).square() * counts).sum(1)
            chosen = int(error.argmin())
            best = (float(trial[0][chosen]), float(trial[1][chosen]))
        return best

    def range(self, method: str, grid: IntegerGrid, percent: float = 99.99) -> tuple[float, float]:
        """(low, high) by "minmax", "percentile" or "mse"."""
        if method == "minmax":
            return self.low, self.high
        return self.percentile(percent) if method == "percentile" else self.least_error(grid)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode inside, every module's own mode again outside; yields the model's device."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    finally:
        for module, mode in modes.items():
            module.training = mode


def calibrate(model: nn.Module, batches: Iterable[dict[str, Any]], names: Iterable[str]) -> dict[str, Histogram]:
    """Histograms over batches of module inputs ("PATH:input") and of feature maps (B, C, H, W) that modules give ("PATH").

    A signal that never occurred is absent.

    The model runs in evaluation mode without gradient and is left as it was. Positions that an `attention_mask` (B, L)
    of the batch hides are not counted in activations of shape (B, L, ...).
    """
    names = list(names)
    if not names:
        return {}
    found: dict[str, Histogram] = {}
    mask: Tensor | None = None

    def visit(name: str, value: Tensor) -> None:
        if not value.is_floating_point() or (not name.endswith(":input") and value.dim() != 4):
            return
        if mask is not None and value.shape[:2] == mask.shape:
            value = value[mask]
        found.setdefault(name, Histogram()).update(value)

    seen = False
    with evaluating(model) as device, torch.no_grad(), Tap(model, names, visit):
        for batch in batches:
            batch = to_device(batch, device)
            hidden = batch.get("attention_mask")
            mask = hidden.bool() if isinstance(hidden, Tensor) and hidden.dim() == 2 else None
            call(model, batch)
            seen = True
    if not seen:
        raise DataError("the train split gave no batch to calibrate with")
    return found


def static_parameters(low: float, high: float, grid: IntegerGrid) -> dict[str, Any]:
    """{"bits", "scale", "zero_point"} of an activation range, as a plan holds it."""
    scale, zero = affine(torch.tensor(low), torch.tensor(high), grid)
    return {"bits": grid.bits, "scale": float(scale), "zero_point": int(zero)}


def check_method(method: str, percentile: float) -> None:
    """Raises UsageError for a method or percentile that is not allowed."""
    if method not in METHODS:
        raise UsageError(f"calibration={method!r}: allowed are {', '.join(map(repr, METHODS))}")
    if not 50.0 < percentile <= 100.0:
        raise UsageError(f"percentile={percentile!r}: must be above 50 and at most 100")
