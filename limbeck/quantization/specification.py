"""What a plan says of one quantized module, read from and written to JSON.

    {"weight": {"bits": 8, "symmetric": true, "granularity": {"channel": 0}, "scale_type": "float32", "method": "minmax", "scale": null},
     "input": null | "dynamic" | {"dynamic": 4} | {"bits": 8, "scale": 0.02, "zero_point": 3},
     "compute": "float32"}

`weight.grid` is there on grids other than integers: {"kind": "NormalFloatGrid", "bits": 4}. `weight.scale` is a list when the scales
(or the codebooks) were learned, else they follow from the weights by `method`. `compute` is the type in which weight-only products run. Dynamic inputs
have 8 bits where none are named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, DataError, UsageError
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.contract import SCALE_TYPES, Grid, Packed
from limbeck.quantization.granularity import (
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    granularity_from_json,
    granularity_to_json,
)
from limbeck.quantization.grids import IntegerGrid, Quantizer
from limbeck.quantization.named_grids import grid_from_json, grid_to_json

DYNAMIC = "dynamic"
PER_OUTPUT = PerChannel(0)
COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class InputRange:
    """A static activation range: an unsigned grid of `bits` with its scale and zero point."""

    bits: int
    scale: float
    zero_point: int

    @property
    def grid(self) -> IntegerGrid:
        return IntegerGrid(self.bits, signed=False, symmetric=False)


@dataclass(frozen=True)
class DynamicRange:
    """Symmetric integers of `bits`, their scale found at run time: one per token of a linear layer, one per sample of a convolution."""

    bits: int = 8

    def __post_init__(self) -> None:
        IntegerGrid(self.bits)
        if self.bits > 8:
            raise UsageError(f"dynamic inputs of bits={self.bits!r}: allowed are 2 to 8")


@dataclass(frozen=True)
class Specification:
    """How one module is quantized. Weights are seen as matrices (out, everything else).

    grid: of the weights; None: integers of `bits`. `bits` of another grid are its own.
    """

    bits: float = 8
    symmetric: bool = True
    granularity: Granularity = PER_OUTPUT
    scale_type: str = "float32"
    method: str = "minmax"
    learned_scale: tuple[float, ...] | None = None
    input: InputRange | DynamicRange | None = None
    compute: str = "float32"
    grid: Grid | None = None

    @property
    def quantizer(self) -> Quantizer:
        grid = self.grid or IntegerGrid(self.bits, signed=self.symmetric, symmetric=self.symmetric)
        return Quantizer(grid, self.granularity, self.method, self.scale_type)

    @property
    def integer_product(self) -> bool:
        """Whether integer kernels can compute it: weights that are whole numbers times a scale that is constant along a product."""
        constant = isinstance(self.granularity, (PerTensor, PerChannel)) and self.input is not None
        return constant and self.symmetric and self.quantizer.grid.whole is not None

    def int4_group(self, columns: int) -> int | None:
        """The group size with which a 4-bit kernel computes it: codes that fit in 4 bits; None where there is none.

        Scales per tensor or output are repeated for every group.
        """
        grid, size = self.quantizer.grid, getattr(self.granularity, "size", None)
        if isinstance(grid, (IntegerGrid, AffineGrid)):
            fits = grid.bits <= 4
        else:
            fits = grid.whole is not None and grid.whole[1] >= -8 and grid.whole[2] <= 7
        sizes = [s for s in (256, 128, 64, 32) if columns % s == 0 and size in (None, s)]
        return (
            sizes[0] if fits and sizes and self.granularity in (PerTensor(), PER_OUTPUT, PerGroup(size or 2)) else None
        )

    def fits(self, shape: tuple[int, int]) -> str | None:
        """Why a weight matrix of this shape cannot be stored, or None."""
        try:
            self.quantizer.layout(shape)
        except DataError as error:
            return str(error)
        return None

    @property
    def parameter(self) -> str:
        """The stored tensor that can be learned: "scale" or "codebook"."""
        return "codebook" if "codebook" in self.quantizer.layout((2, 64)) else "scale"

    def encode(self, weight: Tensor) -> Packed:
        """The packed form of a weight matrix (out, n)."""
        quantizer = self.quantizer
        if self.learned_scale is None:
            return quantizer.encode(weight)
        shape = quantizer.layout(weight.shape)[self.parameter][0]
        if len(self.learned_scale) != math.prod(shape):
            raise ArtifactError(
                f"the plan has {len(self.learned_scale)} learned scales, the weight needs a shape of {shape}"
            )
        learned = torch.tensor(self.learned_scale, device=weight.device).to(SCALE_TYPES[self.scale_type]).reshape(shape)
        empty = torch.zeros(0, dtype=torch.uint8)
        book = learned if self.parameter == "codebook" else None
        return quantizer.project(
            weight, Packed(empty, None if book is not None else learned, None, tuple(weight.shape), book)
        )

    def to_json(self) -> dict[str, Any]:
        inputs = self.input
        if isinstance(inputs, InputRange):
            inputs = dict(inputs.__dict__)
        elif inputs is not None:
            inputs = DYNAMIC if inputs.bits == 8 else {DYNAMIC: inputs.bits}
        weight = {
            "bits": self.bits,
            "symmetric": self.symmetric,
            "granularity": granularity_to_json(self.granularity),
            "scale_type": self.scale_type,
            "method": self.method,
            "scale": None if self.learned_scale is None else list(self.learned_scale),
        }
        if self.grid is not None:
            weight["grid"] = grid_to_json(self.grid)
        return {"weight": weight, "input": inputs, "compute": self.compute}

    @staticmethod
    def from_json(value: Any) -> Specification:
        """Read an entry of a plan. Raises ArtifactError for anything that is not one."""
        try:
            weight, inputs = dict(value["weight"]), _inputs(value["input"])
            grid = grid_from_json(weight.pop("grid")) if "grid" in weight else None
            bits = weight.pop("bits")
            if grid is not None and bits != grid.bits:
                raise ValueError(f"{bits} bits, where {grid} has {grid.bits}")
            specification = Specification(
                int(bits) if grid is None else grid.bits,
                bool(weight.pop("symmetric")),
                granularity_from_json(weight.pop("granularity")),
                str(weight.pop("scale_type")),
                str(weight.pop("method")),
                None if (scale := weight.pop("scale")) is None else tuple(float(s) for s in scale),
                inputs,
                str(value["compute"]),
                grid,
            )
            _ = specification.quantizer
            if weight or specification.compute not in COMPUTE:
                raise ValueError(f"unknown settings {weight or specification.compute!r}")
        except (KeyError, TypeError, ValueError, UsageError, ArtifactError) as error:
            raise ArtifactError(
                f"an entry of the quantization plan cannot be read ({error}): {value!r:.200}"
            ) from error
        return specification


def _inputs(value: Any) -> InputRange | DynamicRange | None:
    """The reverse of what `Specification.to_json` writes of inputs."""
    if value is None:
        return None
    if value == DYNAMIC or DYNAMIC in value:
        return DynamicRange() if value == DYNAMIC else DynamicRange(int(value[DYNAMIC]))
    static = InputRange(int(value["bits"]), float(value["scale"]), int(value["zero_point"]))
    if not (static.scale > 0 and static.grid.low <= static.zero_point <= static.grid.high):
        raise ValueError(f"an input scale must be positive and its zero point on the grid, not {static}")
    return static
