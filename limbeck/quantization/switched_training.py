"""Training of a model that computes at several widths: each takes its turn, and a step of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.objectives.base import Loss, Objective
from limbeck.quantization.bit_switching import switch, switchable
from limbeck.training.procedures import Distil, Losses, State


def width_rate(highest: int, width: int) -> float:
    """eta of a width, d = h - l: 10^(-d/2) where d is even, else 5 x 10^(-(d+1)/2)."""
    difference = highest - width
    return 10.0 ** (-difference / 2) if difference % 2 == 0 else 5 * 10.0 ** (-(difference + 1) / 2)


def switching_probabilities(traces: Mapping[str, float], widths: tuple[int, ...]) -> dict[str, tuple[float, ...]]:
    """How likely a layer is to get each width: alike where its Hessian trace is below the mean of all, else b / sum b."""
    mean = sum(traces.values()) / len(traces)
    alike = tuple(1 / len(widths) for _ in widths)
    by_width = tuple(width / sum(widths) for width in widths)
    return {path: alike if trace < mean else by_width for path, trace in traces.items()}


class SwitchBits(Distil):
    """Train a model made by `prepare_switching` at all its widths.

    Consecutive steps take the widths in turn, from the highest, each with a batch and an update of all shared parameters of its own. Weights and
    scales have an optimizer each ("weights", "scales"). scaling: adaptive rates of the scales,

        rate_b = eta_b rate (1 - mean over layers of min(max |grad s|, 1)),    eta_b: `width_rate`

    so that widths whose scales have large gradients take smaller steps. separate=False: every step sums the losses of all widths and has one update,
    without adaptive rates. mixed: "uniform", or the Hessian traces of layers by path (`limbeck.search.sensitivity.weight_traces`): in step i of n every
    layer leaves the width whose turn it is with probability (i + 1) / n and draws one, from all alike or by `switching_probabilities`; without
    adaptive rates. widths: those that take turns; None: all.

    teacher, objective: as of `Distil`. Give the trainer decay_norms_and_biases=False so that scales do not decay.
    Source: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, eq. 6 and 7, algorithms 1, A.2 and A.3. Deviations: there one batch serves
    all widths in turn; eq. 6 as printed takes the mean from the rate itself, which gradients above the rate make negative; scales are learned
    relative to their start; normalizations of mixed widths are those of the layer's width.
    Raises UsageError for a student without switchable layers, for `widths` it does not have, and for `mixed` that does not name its layers.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Any,
        objective: Objective,
        *,
        scaling: bool = True,
        separate: bool = True,
        mixed: str | Mapping[str, float] | None = None,
        widths: tuple[int, ...] | None = None,
    ):
        super().__init__(student, teacher, objective)
        self.layers = switchable(student)
        every = next(iter(self.layers.values())).widths
        self.widths = every if widths is None else tuple(sorted(set(widths), reverse=True))
        if not self.widths or not set(self.widths) <= set(every):
            raise UsageError(f"widths={widths!r}: must be some of {every}")
        self.highest = every[0]
        self.separate, self.scaling, self.chances = separate, scaling and separate and mixed is None, None
        if mixed is not None:
            traces = dict.fromkeys(self.layers, 0.0) if mixed == "uniform" else mixed
            if not isinstance(traces, Mapping) or set(traces) != set(self.layers) or not separate:
                raise UsageError(
                    f'mixed: give "uniform" or a trace for every layer, {", ".join(self.layers)}, with separate=True'
                )
            alike = tuple(1 / len(self.widths) for _ in self.widths)
            self.chances = (
                dict.fromkeys(traces, alike) if mixed == "uniform" else switching_probabilities(traces, self.widths)
            )
        self.width = self.widths[0]

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> None:
        super().prepare(batch, device)
        scales = [parameter for layer in self.layers.values() for parameter in layer.scales]
        known = {id(parameter) for parameter in scales}
        rest = [parameter for parameter in self.student.parameters() if id(parameter) not in known]
        self.modules |= {"weights": nn.ParameterList(rest), "scales": nn.ParameterList(scales)}

    @property
    def optimizers(self) -> dict[str, tuple[str, ...]]:
        return {"weights": tuple(n for n in self.modules if n not in ("student", "scales")), "scales": ("scales",)}

    @property
    def learning_rates(self) -> dict[str, float]:
        """Read between the backward pass and the step: the rate follows from the gradients of the step's width."""
        if not self.scaling:
            return {}
        largest = [
            max(float(p.grad.abs().max().clamp(max=1.0)) for p in layer.scales if p.grad is not None)
            for layer in self.layers.values()
            if any(p.grad is not None for p in layer.scales)
        ]
        mean = sum(largest) / max(1, len(largest))
        return {"scales": width_rate(self.highest, self.width) * (1 - mean)}

    def step(self, batch: Mapping[str, Any], state: State) -> Losses:
        if self.separate:
            self.width = self.widths[state.step % len(self.widths)]
            switch(self.student, self._drawn(state) if self.chances else self.width)
            loss = super().step(batch, state)["main"]
        else:
            each = {}
            for width in self.widths:
                switch(self.student, width)
                each[f"{width} bits"] = super().step(batch, state)["main"].value
            loss = Loss(torch.stack(list(each.values())).sum(), each)
        return {"weights": loss, "scales": loss}

    def _drawn(self, state: State) -> dict[str, int]:
        leaving = torch.rand(len(self.layers)) < (state.step + 1) / state.steps
        drawn = torch.multinomial(torch.tensor(list(self.chances.values())), 1).flatten().tolist()
        return {
            path: self.widths[at] if leaves else self.width for path, leaves, at in zip(self.layers, leaving, drawn)
        }

    def after_step(self, state: State) -> None:
        super().after_step(state)
        switch(self.student, self.widths[0])  # what is evaluated

    def kept_modules(self) -> dict[str, nn.Module]:
        return {name: module for name, module in super().kept_modules().items() if name not in ("weights", "scales")}

    def describe(self) -> Any:
        settings = {"scaling": self.scaling, "separate": self.separate, "chances": self.chances}
        return super().describe() | settings | {"widths": list(self.widths)}
