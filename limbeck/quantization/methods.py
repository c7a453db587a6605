"""Methods by name: which transforms, or which training, put a model on a grid of so many bits.

    METHODS["gptq"].steps(Settings(bits=4))      the transforms, each planned on what the one before has left
    METHODS["trained"].student(Settings(bits=1)) the Quantize whose grid is trained

`limbeck.quantize` picks one by `DEFAULTS`; the table of docs/quantization_table.md compares all of them, so both always mean the same.
Widths: 8 to 2 are integers (of `hqq` and `decoupleq` with real offsets), 1.58 is -1, 0, 1, and 1 is the sign. k-means codebooks store vectors
of several weights at a time, so that the bits of an index come to as many per weight (1.6 for 1.58).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from limbeck.quantization.adaptive_rounding import BlockReconstruction
from limbeck.quantization.decoupled import DecoupleQ
from limbeck.quantization.equivalence import AWQ, ClipWeights, Rotate, SmoothQuant
from limbeck.quantization.gptq import GPTQ
from limbeck.quantization.quantize import Quantize

TERNARY = 1.58
WIDTHS = (8, 7, 6, 5, 4, 3, 2, TERNARY, 1)
# width -> the grid of weights that are trained with learned scales: every width has as many values above 0 as below
TRAINED_GRIDS: dict[float, Any] = {
    2: {"name": "levels", "levels": (-1.5, -0.5, 0.5, 1.5)},
    TERNARY: "ternary",
    1: "binary",
}
# width -> bits of an index and weights in a vector
CODEBOOKS: dict[float, tuple[int, int]] = {4: (8, 2), 3: (6, 2), 2: (8, 4), TERNARY: (8, 5), 1: (8, 8)}

# width -> learning rate of methods that train: the more a grid has left of the model, the less may be moved
RATES: dict[float, float] = {4: 1e-4, 3: 1e-4, 2: 3e-4, TERNARY: 3e-4, 1: 1e-3}


@dataclass(frozen=True)
class Settings:
    """What is asked for, whatever the method: bits, `weights` as in `Quantize`, which modules, calibration examples, types of products and scales."""

    bits: float = 4
    weights: str | int = 64
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    examples: int = 128
    batch_size: int = 16
    compute: str = "bfloat16"
    scale_type: str | None = None

    def quantize(self, **changes: Any) -> Quantize:
        """Weight-only, to the nearest, on the grid of the width; `changes` are fields of `Quantize`."""
        named = {TERNARY: {"grid": "ternary"}, 1: {"grid": "binary"}}.get(self.bits, {"bits": self.bits})
        usual = {
            name: getattr(self, name)
            for name in ("weights", "only", "ignore", "examples", "batch_size", "compute", "scale_type")
        }
        if self.bits == 8:  # one scale per output is enough, and what the kernels of 8 bits know
            usual["weights"] = "channel"
        return Quantize(**{**usual, "activations": None, **named, **changes})


@dataclass(frozen=True)
class Method:
    """about: what it does. bits: the widths it is for. steps: settings -> transforms. reads_data: whether they read the train split.

    training: None; "learned", where the model is trained with its rounding simulated and learned scales; "codes", where codes and codebooks of the
    quantized model are (`tune_codes`). Of these `steps` gives the one Quantize that is trained.
    """

    about: str
    bits: tuple[float, ...]
    steps: Callable[[Settings], tuple[Any, ...]]
    reads_data: bool = False
    training: str | None = None


def _nearest(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(),)


def _dynamic(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(weights="channel", activations="dynamic", compute="float32"),)


def _smooth(s: Settings) -> tuple[Any, ...]:
    return (SmoothQuant(examples=s.examples, batch_size=s.batch_size), *_dynamic(s))


def _ranges(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(method="mse"),)


def _half_quadratic(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(grid="affine", rounding="hqq"),)


def _activation_aware(s: Settings) -> tuple[Any, ...]:
    same = {"bits": s.bits, "weights": s.quantize().weights, "examples": s.examples, "batch_size": s.batch_size}
    usual = ClipWeights().ignore
    return (AWQ(**same), ClipWeights(**same, ignore=(*usual, *s.ignore)), s.quantize())


def _gptq(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(method="mse", rounding=GPTQ()),)


def _rotated(s: Settings) -> tuple[Any, ...]:
    return (Rotate(), *_gptq(s))


def _decoupled(s: Settings) -> tuple[Any, ...]:
    rounding = DecoupleQ(epochs=4, learning_rate=1e-3 * 4.0 ** (2 - s.bits))
    return (s.quantize(grid="affine", rounding=rounding),)


def _reconstruction(s: Settings) -> tuple[Any, ...]:
    return (s.quantize(method="mse", rounding=BlockReconstruction(iterations=100, warmup=0.1, learning_rate=0.1)),)


def _codebooks(s: Settings) -> tuple[Any, ...]:
    bits, entries = CODEBOOKS[s.bits]
    grid = {"name": "kmeans", "index_bits": bits, "entries": entries}
    return (s.quantize(grid=grid, weights="tensor", bits=8, scale_type="bfloat16"),)


def _learned(s: Settings) -> tuple[Any, ...]:
    if s.bits not in TRAINED_GRIDS:
        return (s.quantize(symmetric=True),)
    return (s.quantize(grid=TRAINED_GRIDS[s.bits], method="mse", bits=8),)


INTEGERS, FEW = (8, 7, 6, 5, 4, 3, 2), (5, 4, 3, 2)
METHODS: dict[str, Method] = {
    "nearest": Method("rounding to the nearest on min-max ranges", WIDTHS, _nearest),
    "ranges": Method("rounding to the nearest on the ranges of least squared error", WIDTHS, _ranges),
    "dynamic": Method("integer weights per channel, int8 activations per token at run time", INTEGERS, _dynamic),
    "smooth": Method("SmoothQuant, then as dynamic", INTEGERS, _smooth, reads_data=True),
    "hqq": Method("half-quadratic offsets, real offsets stored", FEW, _half_quadratic),
    "awq": Method("scales and limits searched on activations (AWQ)", INTEGERS, _activation_aware, reads_data=True),
    "gptq": Method("column by column with the Hessian (GPTQ)", WIDTHS, _gptq, reads_data=True),
    "rotated_gptq": Method("Hadamard rotations, then GPTQ", WIDTHS, _rotated, reads_data=True),
    "decoupleq": Method("codes and real parameters in turn, then block by block", FEW, _decoupled, reads_data=True),
    "reconstruction": Method("learned rounding, block by block (BRECQ)", FEW, _reconstruction, reads_data=True),
    "kmeans": Method("codebooks of short vectors by k-means", tuple(CODEBOOKS), _codebooks),
    "codes": Method("k-means codebooks, then codes and books trained (PV-Tuning)", tuple(CODEBOOKS), _codebooks, True, "codes"),
    "trained": Method("trained with its rounding simulated, scales learned (LSQ), on the float model's answers", (4, 3, 2, TERNARY, 1),
                      _learned, True, "learned"),
}  # fmt: skip

# width -> the method without a task, and with one; docs/quantization.md says which of them the table has measured
DEFAULTS: dict[float, tuple[str, str]] = {
    8: ("dynamic", "dynamic"),
    7: ("ranges", "gptq"),
    6: ("ranges", "gptq"),
    5: ("hqq", "gptq"),
    4: ("hqq", "gptq"),
    3: ("hqq", "gptq"),
    2: ("ranges", "decoupleq"),
    TERNARY: ("ranges", "trained"),
    1: ("nearest", "trained"),
}
