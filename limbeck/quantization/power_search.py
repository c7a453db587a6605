"""Codes and power exponents learned together on a layer's output.

    W~ = s l_a(c),    loss = output error + weight sum (1 - |2 f - 1|^beta),    f = c - floor(c)

l_a(k) = sign(k) |k / K|^(1/a) are the levels of `SearchedPowerGrid`. c is a real position on the codes, which begins where W~ = W and may travel over
all of them: a change of a moves weights by more than one level. l_a is linear between neighbouring levels, so its slope in c is the distance of
two levels and never 0 (that of |c|^(1/a) is, at 0), and its slope in a meets no logarithm of 0. The second term, whose beta falls as in `AdaRound`,
pushes every c to a whole number, whichever.

Source: Yvinec et al., "NUPES: Non-Uniform Post-Training Quantization via Power Exponent Search", 2023: that exponents and codes over the whole grid
are learned follows its abstract; the annealed term (AdaRound's, repeated from code to code) and the linear pieces are ours, as no code and no
full text were at hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.adaptive_rounding import AdaRound, annealed
from limbeck.quantization.contract import Packed
from limbeck.quantization.formats import check_whole
from limbeck.quantization.granularity import Granularity, PerTensor, from_rows, rows, spread
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import output_error
from limbeck.quantization.power_grid import HIGHEST, LOWEST, SearchedPowerGrid, power_levels


def fraction_penalty(position: Tensor, beta: float) -> Tensor:
    """sum (1 - |2 f - 1|^beta), f = c - floor(c): 0 where every position is whole."""
    fraction = position - position.detach().floor()
    return (1 - (2 * fraction - 1).abs().pow(beta)).sum()


class PowerForm:
    """A weight (out, n) as positions 0 ... 2 K on the levels of its rows' exponents; `position` and `exponent` are what is trained."""

    def __init__(
        self, weight: Tensor, scale: Tensor, exponent: Tensor, grid: SearchedPowerGrid, granularity: Granularity
    ):
        self.scale, self.grid, self.granularity, self.shape = scale.float(), grid, granularity, tuple(weight.shape)
        self.exponent = exponent.float().clone().requires_grad_(True)
        levels = power_levels(self.exponent.detach().flatten(), grid.largest)[0]
        wide = rows(weight / torch.where(self._wide(self.scale) == 0, 1.0, self._wide(self.scale)), granularity)
        below = (torch.searchsorted(levels, wide.contiguous(), right=True) - 1).clamp(0, 2 * grid.largest - 1)
        under, over = levels.gather(1, below), levels.gather(1, below + 1)
        position = below + ((wide - under) / (over - under)).clamp(0, 1)
        self.position = from_rows(position, self.shape, granularity).clone().requires_grad_(True)

    def _wide(self, parameter: Tensor) -> Tensor:
        return spread(parameter, self.shape, self.granularity).expand(self.shape)

    def values(self, position: Tensor) -> Tensor:
        """s l_a(position), position (out, n) in [0, 2 K], differentiable in position and exponent."""
        levels, slopes = power_levels(self.exponent.detach().flatten(), self.grid.largest)
        wide = rows(position, self.granularity)
        below = wide.detach().long().clamp(0, 2 * self.grid.largest - 1)
        part = wide - below
        under, over = levels.gather(1, below), levels.gather(1, below + 1)
        values = under + part * (over - under)
        drift = (self.exponent - self.exponent.detach()).reshape(-1, 1)
        if drift.requires_grad:
            low, high = slopes.gather(1, below), slopes.gather(1, below + 1)
            values = values + drift * (low + part.detach() * (high - low))
        return from_rows(values, self.shape, self.granularity) * self._wide(self.scale)


@dataclass(frozen=True)
class PowerSearch(AdaRound):
    """Learned codes and exponents, layer by layer; see the module. For grid="searched_power".

    iterations, learning_rate, penalty, warmup: as of `AdaRound`, the rate in codes per step. exponent_rate: of Adam on exponents; 0: those that were
    searched stay. reach: how many codes a weight may end away from those on its two sides; None: all of them, 1: up or down only.
    Rows whose codes cost more than the nearest levels keep those; where a scale's exponent has won nothing, it stays as it was searched.
    Raises UsageError for settings out of range, and for other grids.
    """

    learning_rate: float = 0.05
    exponent_rate: float = 3e-3
    reach: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent_rate < math.inf:
            raise UsageError(f"exponent_rate={self.exponent_rate!r}: must be at least 0")
        if self.reach is not None:
            check_whole("reach", self.reach, 1, 256)

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        grid = quantizer.grid
        if not isinstance(grid, SearchedPowerGrid):
            raise UsageError(f"PowerSearch works on the grid 'searched_power', not on {grid}")
        start = grid.encode(weight, quantizer)
        before = output_error(quantizer.decode(start) - weight, hessian)
        form = PowerForm(weight, start.scale, start.zero_point, grid, quantizer.granularity)
        self._train(form, weight, hessian, before.sum() / weight.numel())
        exponent = form.exponent.detach().to(start.zero_point.dtype) if self.exponent_rate else start.zero_point
        found = grid.pack(form.position.detach().round(), start.scale, exponent)
        for other in (grid.place(weight, start.scale, exponent, quantizer.granularity), start):
            found = self._better(found, other, weight, hessian, quantizer)
        return found

    def _better(self, one: Packed, other: Packed, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        """Row by row the one that costs less; whole where rows share an exponent that differs."""
        errors = [output_error(quantizer.decode(packed) - weight, hessian) for packed in (one, other)]
        if quantizer.granularity == PerTensor() and not torch.equal(one.zero_point, other.zero_point):
            return one if errors[0].sum() <= errors[1].sum() else other
        keep, grid = errors[0] <= errors[1], quantizer.grid
        codes = torch.where(keep[:, None], grid.codes(one), grid.codes(other))
        if quantizer.granularity == PerTensor():
            return grid.pack(codes, one.scale, one.zero_point)
        wide = keep.reshape(-1, *[1] * (one.zero_point.dim() - 1))
        return grid.pack(codes, one.scale, torch.where(wide, one.zero_point, other.zero_point))

    def _train(self, form: PowerForm, weight: Tensor, hessian: Tensor, unit: Tensor) -> None:
        """Adam steps on the form's positions and exponents; positions stay on the codes and within `reach`."""
        unit = torch.where(unit > 0, unit, torch.ones_like(unit))
        low, high = torch.zeros_like(form.position), torch.full_like(form.position, 2.0 * form.grid.largest)
        if self.reach is not None:
            floor = form.position.detach().floor()
            low, high = low.maximum(floor + 1 - self.reach), high.minimum(floor + self.reach)
        groups = [{"params": [form.position], "lr": self.learning_rate}]
        if self.exponent_rate:
            groups.append({"params": [form.exponent], "lr": self.exponent_rate})
        else:
            form.exponent.requires_grad_(False)
        optimizer = torch.optim.Adam(groups)
        with torch.enable_grad():
            for step in range(self.iterations):
                loss = output_error(form.values(form.position) - weight, hessian).sum() / unit
                beta = annealed(step, self.iterations, self.warmup)
                if beta is not None:
                    loss = loss + self.penalty * fraction_penalty(form.position, beta)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    form.position.clamp_(low, high)
                    form.exponent.clamp_(LOWEST, HIGHEST)
