"""HQQ: offsets by half-quadratic splitting, without data.

The weight error is measured by a norm with p < 1, which outliers hardly move, and split off into a variable of its own:

    min over o, E of  ||E||_p^p + beta/2 ||E - (W - W^)||^2,    W^ = s q + o,  q = nearest codes

    E <- shrink(W - W^),   shrink(x) = sign(x) max(|x| - |x|^(p - 1) / beta, 0)
    o <- mean over the group of (W - E - s q)

and beta grows by kappa a step; the scale stays that of min-max. Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine
Learning Models", 2023, sections 2 and 3. The authors' code states zero points (o = -s z), which is the same; its default solver never
grows beta, here it grows as in the text. With kappa = 1 and run beside that solver on random weights, offsets agree to 2e-8.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.contract import Packed
from limbeck.quantization.granularity import parameter_shape, rows
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.rounding import LayerRounding


def shrink(x: Tensor, beta: float, p: float) -> Tensor:
    """The generalized soft threshold sign(x) max(|x| - |x|^(p-1) / beta, 0); 0 stays 0. (...)"""
    size = x.abs()
    power = torch.where(size > 0, size, torch.ones_like(size)).pow(p - 1)
    return x.sign() * (size - power / beta).clamp(min=0)


def half_quadratic(
    weight: Tensor, form: AffineForm, p: float, beta: float, kappa: float, iterations: int
) -> AffineForm:
    """The form with the offsets that the solver finds for weight (out, n). It ends when the mean |W - W^| no longer falls and
    returns the best step, so never anything worse than it began with."""
    granularity = form.quantizer.granularity
    best, least = form, (weight - form.values(form.nearest(weight))).abs().mean()
    current = form
    for _ in range(iterations):
        codes = current.nearest(weight)
        residue = weight - shrink(weight - current.values(codes), beta, p)
        offset = (
            rows(residue - codes * current.wide()[0], granularity)
            .mean(1)
            .reshape(parameter_shape(weight.shape, granularity))
        )
        current = replace(current, offset=offset)
        error = (weight - current.values(current.nearest(weight))).abs().mean()
        if error >= least:
            break
        best, least, beta = current, error, beta * kappa
    return best


@dataclass(frozen=True)
class HalfQuadratic(LayerRounding):
    """HQQ; see the module. It reads no data.

    p, beta, kappa, iterations: of the solver, defaults of the authors. On an affine grid (`grid="affine"`) offsets are stored as they
    are found; on an asymmetric integer grid they are rounded to whole zero points, and kept only where that lessens the error.
    Raises UsageError for settings out of range, and for symmetric grids, which have no offset.
    """

    p: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20
    reads_data = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p < 1:
            raise UsageError(f"p={self.p!r}: must lie between 0 and 1")
        if not self.beta > 0 or not self.kappa >= 1 or type(self.iterations) is not int or self.iterations < 1:
            raise UsageError(
                f"beta={self.beta!r}, kappa={self.kappa!r}, iterations={self.iterations!r}: above 0, at least 1 and 1"
            )

    def layer(self, weight: Tensor, hessian: Tensor | None, quantizer: Quantizer) -> Packed:
        form = AffineForm.of(weight, quantizer, "HalfQuadratic")
        if getattr(quantizer.grid, "symmetric", False):
            raise UsageError(
                "HalfQuadratic fits offsets and a symmetric grid has none: symmetric: false, or grid: affine"
            )
        found = half_quadratic(weight, form, self.p, self.beta, self.kappa, self.iterations)
        if form.fits_offset:
            found = form.with_parameters(form.scale, found.offset)
        else:
            zero = found.zero_point.clamp(form.low, form.high)
            found = replace(form, offset=-form.scale * zero)
        granularity = quantizer.granularity

        def error(form: AffineForm) -> Tensor:
            return (
                rows((weight - form.values(form.nearest(weight))).abs(), granularity).mean(1).reshape(form.offset.shape)
            )

        kept = replace(form, offset=torch.where(error(found) < error(form), found.offset, form.offset))
        return kept.pack(kept.nearest(weight))
