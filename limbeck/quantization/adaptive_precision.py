"""Training in fixed point whose word and fraction lengths follow each layer, between no loss of information and no lost steps (AdaPT).

    on_fixed_point(model) -> Trainer.run(AdaptivePrecision(procedure, window), task) -> store_fixed_point(model)

Weights have a float32 master copy; every training pass computes with it rounded stochastically to the layer's <word, fraction>, and its
gradient goes to the master copy unchanged. After each window of steps, layer by layer:

    PushDown   the least fraction f for which the weights' histogram survives rounding, KL(hist(w) || hist(w on 2^-f)) <= tolerance, by
               bisection, and the shortest word that clips nothing
    PushUp     bits = ceil(log2(sqrt(K sum_k |g_k|^2) / |sum_k g_k|)), the gradients' diversity over the window's K steps, between 0 and
               `most`: where single steps cancel, progress is that much smaller than one step, and the fraction is that much longer

Source: Kummer et al., "Adaptive Precision Training (AdaPT)", 2021. No public source that could be read gives the rule of PushUp, which is
ours, from its description. Not here: windows and histograms whose lengths adapt; the penalty on word lengths, which between two
switches is a constant; activations and gradients in fixed point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss
from limbeck.quantization.contract import Packed
from limbeck.quantization.fixed_point import FixedPointGrid, fixed_point, whole_bits
from limbeck.quantization.granularity import PerTensor
from limbeck.quantization.grids import Quantizer
from limbeck.quantization.parametrized import finish_weights, on_weights, parametrized_weights
from limbeck.quantization.straight_through import straight_through
from limbeck.training.constraints import Around
from limbeck.training.procedures import Losses, Procedure, State

LONGEST = 16  # bits of a word


def information_loss(x: Tensor, rounded: Tensor, bins: int) -> float:
    """KL(P || Q) in nats of the histograms of x and of `rounded` (both (...)) with `bins` equal bins over the range of x.

    Half an element is added to every bin on both sides, so that it is finite; what lies outside counts in the outermost bins.
    """
    low, high = float(x.min()), float(x.max())
    if low == high:
        return 0.0 if bool((rounded == x).all()) else math.inf
    counts = []
    for values in (x, rounded):
        at = ((values.double().flatten() - low) / (high - low) * bins).floor().clamp(0, bins - 1).long()
        counts.append(torch.bincount(at, minlength=bins).double() + 0.5)
    p, q = (found / found.sum() for found in counts)
    return float((p * (p / q).log()).sum())


def push_down(x: Tensor, bins: int, tolerance: float, longest: int = LONGEST) -> tuple[int, int]:
    """The shortest <word, fraction> of x (...) that loses no information; the longest word where none does.

    The loss is taken to fall with the fraction, so that bisection over the fractions that fit finds the first that is small enough.
    """
    size = float(x.abs().max())
    if size == 0 or not math.isfinite(size):
        return 2, 0
    coarsest = -math.floor(math.log2(size))  # one bit beside the sign
    finest = coarsest
    while whole_bits(x, finest + 1) <= longest:
        finest += 1
    low, high = min(coarsest, finest), finest
    while low < high:
        middle = (low + high) // 2
        rounded = fixed_point(x, whole_bits(x, middle), middle)
        if information_loss(x, rounded, bins) <= tolerance:
            high = middle
        else:
            low = middle + 1
    return whole_bits(x, low), low


def push_up(squares: float, net: float, steps: int, most: int) -> int:
    """Bits to add: ceil(log2(sqrt(K sum |g|^2) / |sum g|)) within 0..most. squares: sum |g_k|^2; net: |sum g_k|; steps: K."""
    if steps == 0 or squares == 0:
        return 0
    if net == 0:
        return most
    return min(most, max(0, math.ceil(math.log2(math.sqrt(steps * squares) / net) - 1e-9)))


class OnFixedPoint(nn.Module):
    """The parametrization of one weight: in training rounded stochastically, else to the nearest; straight-through to the master copy.

    Buffers: word and fraction; of the window its steps, `squares` and `total` of the gradients; of the whole training its passes and the
    sum of their word lengths, `bits`.
    """

    def __init__(self, weight: Tensor, word: int, fraction: int, stochastic: bool):
        super().__init__()
        self.stochastic = stochastic
        for name, value in (("word", word), ("fraction", fraction), ("steps", 0), ("passes", 0), ("bits", 0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.int64))
        self.register_buffer("squares", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros_like(weight.detach()))

    def forward(self, weight: Tensor) -> Tensor:
        noise = torch.rand_like(weight) if self.training and self.stochastic else None
        found = straight_through(
            weight, fixed_point(weight.detach(), int(self.word), int(self.fraction), noise).to(weight.dtype)
        )
        if found.requires_grad and self.training:
            found.register_hook(self._collect)
        return found

    def _collect(self, gradient: Tensor) -> None:
        gradient = gradient.detach()
        self.steps += 1
        self.passes += 1
        self.bits += self.word
        self.squares += gradient.double().square().sum()
        self.total += gradient

    def switch(self, weight: Tensor, bins: int, tolerance: float, most: int, longest: int) -> None:
        """Choose word and fraction anew and begin another window. With the word at its longest the fraction is cut, never the range."""
        _, fraction = push_down(weight, bins, tolerance, longest)
        fraction += push_up(float(self.squares), float(self.total.double().norm()), int(self.steps), most)
        while whole_bits(weight, fraction) > longest:
            fraction -= 1
        self.fraction.fill_(fraction)
        # one bit in reserve: a weight that grows within the window must not be clipped
        self.word.fill_(min(longest, whole_bits(weight, fraction) + 1))
        self.steps.zero_()
        self.squares.zero_()
        self.total.zero_()


def on_fixed_point(model: nn.Module, word: int = 8, fraction: int = 6, stochastic: bool = True) -> nn.Module:
    """Put the weight of every linear and convolution layer on <word, fraction>, in place, and return the model.

    Biases and normalizations stay float32. Raises UsageError for lengths out of range and a model without such layers.
    """
    if type(word) is not int or not 2 <= word <= LONGEST or type(fraction) is not int or abs(fraction) > 64:
        raise UsageError(f"word={word!r}, fraction={fraction!r}: words have 2 to {LONGEST} bits, fractions -64 to 64")
    return on_weights(model, lambda weight: OnFixedPoint(weight, word, fraction, stochastic))


class AdaptivePrecision(Around):
    """Any procedure on a model prepared by `on_fixed_point`, whose words and fractions are chosen anew after every window of steps.

    window: steps of a window. bins, tolerance: of PushDown. most: bits that PushUp may add. longest: word. sparsity: weight of the sum of
    |w| over the master copies, added to the loss of the first optimizer. Raises UsageError for settings out of range and a model without
    fixed point.
    """

    def __init__(
        self,
        procedure: Procedure,
        window: int,
        bins: int = 50,
        tolerance: float = 1e-2,
        most: int = 3,
        longest: int = LONGEST,
        sparsity: float = 0.0,
    ):
        for name, value, least in (
            ("window", window, 1),
            ("bins", bins, 2),
            ("most", most, 0),
            ("longest", longest, 2),
        ):
            if type(value) is not int or value < least:
                raise UsageError(f"{name}={value!r}: must be a whole number of at least {least}")
        if not tolerance > 0 or not 0 <= sparsity < math.inf or longest > LONGEST:
            raise UsageError(
                f"tolerance={tolerance!r} must be above 0, sparsity={sparsity!r} at least 0, longest={longest!r} at most {LONGEST}"
            )
        self.procedure, self.window, self.sparsity = procedure, window, sparsity
        self.settings = {"bins": bins, "tolerance": tolerance, "most": most, "longest": longest}
        self.layers = [
            found for module in procedure.modules.values() for found in parametrized_weights(module, OnFixedPoint)
        ]
        if not self.layers:
            raise UsageError("no weight is in fixed point: call on_fixed_point first")

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        losses = self.procedure.step(batch, state)
        if not self.sparsity:
            return losses
        name, loss = next(iter(losses.items()))
        size = sum(original.abs().sum() for _, _, original in self.layers)
        return {**losses, name: Loss(loss.value + self.sparsity * size, {**loss.parts, "size": size.detach()})}

    @torch.no_grad()
    def after_step(self, state: State) -> None:
        self.procedure.after_step(state)
        if (state.step + 1) % self.window == 0:
            for _, found, original in self.layers:
                found.switch(original, **self.settings)

    def describe(self) -> Any:
        own = {"procedure": "AdaptivePrecision", "window": self.window, "sparsity": self.sparsity, **self.settings}
        return {**own, "inner": self.procedure.describe()}


def precisions(model: nn.Module) -> dict[str, tuple[int, int]]:
    """<word, fraction> of every weight in fixed point, by the path of its layer."""
    return {path: (int(f.word), int(f.fraction)) for path, f, _ in parametrized_weights(model, OnFixedPoint)}


def mean_words(model: nn.Module) -> dict[str, float]:
    """The mean word length of every weight in fixed point over all passes of its training, by the path of its layer."""
    return {
        path: int(found.bits) / max(1, int(found.passes))
        for path, found, _ in parametrized_weights(model, OnFixedPoint)
    }


def store_fixed_point(model: nn.Module) -> dict[str, Packed]:
    """What is stored of every weight in fixed point, by the path of its parameter; the model ends with plain weights decoded from it.

    Raises UsageError for a model that `on_fixed_point` did not prepare.
    """

    def stored(found: OnFixedPoint, weight: Tensor) -> tuple[Packed, Tensor]:
        quantizer = Quantizer(FixedPointGrid(int(found.word)), PerTensor())
        matrix = weight.detach().float().flatten(1)
        scale = torch.tensor(2.0 ** -int(found.fraction), device=weight.device)
        packed = quantizer.project(matrix, Packed(matrix, scale, None, tuple(matrix.shape)))
        return packed, quantizer.decode(packed).reshape(weight.shape)

    return finish_weights(model, OnFixedPoint, stored, "on_fixed_point")


def relative_cost(operations: Mapping[str, float], words: Mapping[str, float], whole: int = 32) -> float:
    """Operations weighted by word length, relative to all of them at `whole` bits: sum_l o_l w_l / (whole sum_l o_l).

    operations: multiply-adds by layer, of one pass or summed over training. The analytic model of a machine whose time grows with the
    bits of a word. Raises UsageError for layers without a word.
    """
    missing = set(operations) - set(words)
    total = sum(operations.values())
    if missing or total <= 0:
        raise UsageError(f"no word length is given for {sorted(missing)}, or there are no operations")
    return sum(count * words[path] for path, count in operations.items()) / (whole * total)
