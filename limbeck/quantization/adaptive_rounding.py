"""AdaRound and block reconstruction: whether each weight is rounded down or up is learned, so that outputs change little.

    W~ = s clip(floor((W - o) / s) + h(V), low, high) + o,    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),
    zeta = 1.1, gamma = -0.1

    loss = output error + weight sum (1 - |2 h(V) - 1|^beta)

beta falls from 20 to 2, in a straight line, after a first part of the steps that has no second term, so that first the
outputs are fitted and then every h is pushed to 0 or 1. Sources: Nagel et al., "Up or Down?", ICML 2020, eq. 21 to 25 (one layer at a
time); Li et al., "BRECQ", ICLR 2021 (one block at a time, inputs from the quantized model, targets from the float one).

One layer's output error over all positions is the quadratic tr(E H E^T) / 2, E = W~ - W: AdaRound is trained on that, with the whole
calibration set in every step and no inputs held in memory. (No activation function is in it, as eq. 21 has it.) So that `weight`
means the same for all layers, errors are divided by that of rounding to the nearest per weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import UsageError
from limbeck.quantization.affine_form import AffineForm
from limbeck.quantization.contract import Packed
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.hessian import as_parameter, matrix, output_error
from limbeck.quantization.reconstruction import block_error, inside, reconstruct
from limbeck.quantization.rounding import LayerRounding
from limbeck.quantization.streaming import Segment

GAMMA, ZETA = -0.1, 1.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1).  (...)"""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The v of h in [0, 1].  (...)"""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def annealed(step: int, steps: int, warmup: float, high: float = 20.0, low: float = 2.0) -> float | None:
    """beta at a step: None in the first part `warmup` of all steps, then from high to low in a straight line."""
    start = warmup * steps
    if step < start:
        return None
    return low + (high - low) * max(0.0, 1 - (step - start) / max(1.0, steps - start))


def indecision(v: Tensor, beta: float) -> Tensor:
    """sum (1 - |2 h(v) - 1|^beta): 0 where every h is 0 or 1."""
    return (1 - (2 * rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


class Choice:
    """The learned rounding of one weight (out, n) on its affine form; `v` is what is trained."""

    def __init__(self, weight: Tensor, form: AffineForm):
        self.form, ratio = form, form.ratio(weight)
        self.floor = torch.floor(ratio)
        self.v = inverse_rectified_sigmoid((ratio - self.floor).clamp(0, 1)).requires_grad_(True)

    def soft(self, form: AffineForm | None = None) -> Tensor:
        """The weight while it is trained; form: with other scales, where these are trained as well."""
        form = form or self.form
        return form.values((self.floor + rectified_sigmoid(self.v)).clamp(form.low, form.high))

    def codes(self) -> Tensor:
        """Every choice made: h >= 1/2 rounds up."""
        return (self.floor + (rectified_sigmoid(self.v.detach()) >= 0.5)).clamp(self.form.low, self.form.high)


def adaround(
    weight: Tensor,
    hessian: Tensor,
    form: AffineForm,
    iterations: int,
    learning_rate: float,
    weight_of_penalty: float,
    warmup: float,
) -> Tensor:
    """Codes (out, n) learned for one layer. weight (out, n); hessian (groups, n, n). Rows where rounding to the nearest costs less keep it."""
    choice, nearest = Choice(weight, form), form.nearest(weight)
    start = output_error(form.values(nearest) - weight, hessian)
    unit = start.sum() / weight.numel()
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    optimizer = torch.optim.Adam([choice.v], lr=learning_rate)
    with torch.enable_grad():
        for step in range(iterations):
            loss = output_error(choice.soft() - weight, hessian).sum() / unit
            beta = annealed(step, iterations, warmup)
            if beta is not None:
                loss = loss + weight_of_penalty * indecision(choice.v, beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    codes = choice.codes()
    better = output_error(form.values(codes) - weight, hessian) < start
    return torch.where(better[:, None], codes, nearest)


@dataclass(frozen=True)
class AdaRound(LayerRounding):
    """Learned rounding, layer by layer; see the module.

    iterations, learning_rate: of Adam on V. penalty: the weight of the second term, in units of the error of rounding to the nearest
    per weight; warmup: the part of the steps without it. On random layers 3 came near the best of all roundings and 0.1 did not.
    Raises UsageError for settings out of range, and for grids that are not integer or affine.
    """

    iterations: int = 500
    learning_rate: float = 0.03
    penalty: float = 3.0
    warmup: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.iterations, self.learning_rate, self.warmup)
        if not self.penalty >= 0 or math.isinf(self.penalty):
            raise UsageError(f"penalty={self.penalty!r}: must be at least 0")

    def layer(self, weight: Tensor, hessian: Tensor, quantizer: Quantizer) -> Packed:
        form = AffineForm.of(weight, quantizer, "AdaRound")
        return form.pack(
            adaround(weight, hessian, form, self.iterations, self.learning_rate, self.penalty, self.warmup)
        )


@dataclass(frozen=True)
class BlockReconstruction(AdaRound):
    """Learned rounding of all weights of a block together, on the block's output: BRECQ. Layers outside blocks are AdaRound's.

    The block's inputs are what the quantized blocks before it give, its targets those of the float model. Every step takes one
    calibration batch. Not here: weights of the error by the Fisher information.

    scale_rate: above 0, the scales are trained with the choices at this learning rate, W~ = s (clip(B + h(V), low, high) - z) with
    B = floor(W / s_0) + z held fixed: Genie-M (Jeon et al., "Genie: Show Me the Data for Quantization", CVPR 2023; 1e-4 there). Zero points,
    or the offsets of affine grids, stay. Deviation: scales rest during warmup, when the soft weights can still be the float ones and the
    gradient of a scale is mostly noise, which Adam would follow. Raises UsageError for a scale_rate below 0.
    """

    seed: int = 0
    scale_rate: float = 0.0
    targets = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.scale_rate < math.inf:
            raise UsageError(f"scale_rate={self.scale_rate!r}: must be at least 0")

    def solve(self, segment: Segment, quantizers: Mapping[str, Quantizer]) -> dict[str, Packed]:
        if segment.path is None:
            return super().solve(segment, quantizers)
        weights = {path: matrix(segment.module(path)) for path in segment.paths}
        choices = {
            path: Choice(w, AffineForm.of(w, quantizers[path], "BlockReconstruction")) for path, w in weights.items()
        }
        shapes = {path: segment.module(path) for path in segment.paths}
        before = {
            path: as_parameter(shapes[path], choices[path].form.values(choices[path].form.nearest(w)))
            for path, w in weights.items()
        }
        unit = block_error(segment, segment.targets, {inside(segment, path): value for path, value in before.items()})
        unit = max(unit, 1e-30) / sum(w.numel() for w in weights.values())

        def penalty(step: int) -> Tensor:
            beta = annealed(step, self.iterations, self.warmup)
            terms = [indecision(choice.v, beta) for choice in choices.values()] if beta is not None else []
            return self.penalty * unit * sum(terms) if terms else torch.zeros(())

        learned = bool(self.scale_rate)
        scales = {path: choice.form.scale.clone().requires_grad_(learned) for path, choice in choices.items()}

        def placed(path: str, scale: Tensor) -> AffineForm:
            form = choices[path].form
            return form.with_parameters(scale, form.offset) if learned else form

        steps = itertools.count()

        def parameters() -> dict[str, Tensor]:
            rests = annealed(next(steps), self.iterations, self.warmup) is None
            now = {path: scale.detach() if rests else scale for path, scale in scales.items()}
            return {
                inside(segment, path): as_parameter(shapes[path], choice.soft(placed(path, now[path])))
                for path, choice in choices.items()
            }

        trained = [{"params": [choice.v for choice in choices.values()], "lr": self.learning_rate}]
        if learned:
            trained.append({"params": list(scales.values()), "lr": self.scale_rate})
        reconstruct(segment, segment.targets, parameters, trained, self.iterations, penalty, self.seed)
        for path, choice in choices.items():
            scales[path] = torch.where(scales[path] > 0, scales[path], choice.form.scale).detach()
        after = {path: placed(path, scales[path]).values(choice.codes()) for path, choice in choices.items()}
        whole = {inside(segment, path): as_parameter(shapes[path], value) for path, value in after.items()}
        better = block_error(segment, segment.targets, whole) < unit * sum(w.numel() for w in weights.values())
        found = {}
        for path, choice in choices.items():
            found[path] = (
                placed(path, scales[path]).pack(choice.codes())
                if better
                else choice.form.pack(choice.form.nearest(weights[path]))
            )
            segment.write(path, quantizers[path].decode(found[path]))
        return found


def check_training(iterations: int, learning_rate: float, warmup: float) -> None:
    """Raise UsageError for settings of a training that cannot be right."""
    if type(iterations) is not int or iterations < 1:
        raise UsageError(f"iterations={iterations!r}: must be a whole number of at least 1")
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"learning_rate={learning_rate!r}: must be above 0")
    if not 0 <= warmup < 1:
        raise UsageError(f"warmup={warmup!r}: must lie in [0, 1)")
