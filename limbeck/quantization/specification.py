"""What a plan says of one quantized module, read from and written to JSON.

    {"weight": {"bits": 8, "symmetric": true, "granularity": {"channel": 0}, "scale_type": "float32", "method": "minmax", "scale": null},
     "input": null | "dynamic" | {"bits": 8, "scale": 0.02, "zero_point": 3},
     "compute": "float32"}

`weight.scale` is a list when the scales were learned, else they follow from the weights by `method`. `compute` is the
type in which weight-only products run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import ArtifactError, UsageError
from limbeck.quantization.grids import (
    Granularity,
    IntegerGrid,
    Packed,
    PerChannel,
    PerTensor,
    Quantizer,
    granularity_from_json,
    granularity_to_json,
    parameter_shape,
    quantize,
)

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
class Specification:
    """How one module is quantized. Weights are seen as matrices (out, everything else)."""

    bits: int = 8
    symmetric: bool = True
    granularity: Granularity = PER_OUTPUT
    scale_type: str = "float32"
    method: str = "minmax"
    learned_scale: tuple[float, ...] | None = None
    input: InputRange | str | None = None
    compute: str = "float32"

    @property
    def quantizer(self) -> Quantizer:
        grid = IntegerGrid(self.bits, signed=self.symmetric, symmetric=self.symmetric)
        return Quantizer(grid, self.granularity, self.method, self.scale_type)

    @property
    def integer_product(self) -> bool:
        """Whether integer kernels can compute it: signed symmetric weights whose scale is constant along a product."""
        return self.symmetric and isinstance(self.granularity, (PerTensor, PerChannel)) and self.input is not None

    def encode(self, weight: Tensor) -> Packed:
        """The packed form of a weight matrix (out, n)."""
        quantizer = self.quantizer
        if self.learned_scale is None:
            return quantizer.encode(weight)
        shape = parameter_shape(weight.shape, self.granularity)
        scale = torch.tensor(self.learned_scale, dtype=torch.float32, device=weight.device)
        if scale.numel() != torch.Size(shape).numel():
            raise ArtifactError(f"the plan has {scale.numel()} learned scales, the weight needs a shape of {shape}")
        scale, zero = scale.reshape(shape), torch.full(shape, quantizer.grid.center, device=weight.device)
        return quantizer.pack(quantize(weight, scale, zero, quantizer.grid, self.granularity), scale, zero)

    def to_json(self) -> dict[str, Any]:
        static = self.input if not isinstance(self.input, InputRange) else dict(self.input.__dict__)
        weight = {
            "bits": self.bits,
            "symmetric": self.symmetric,
            "granularity": granularity_to_json(self.granularity),
            "scale_type": self.scale_type,
            "method": self.method,
            "scale": None if self.learned_scale is None else list(self.learned_scale),
        }
        return {"weight": weight, "input": static, "compute": self.compute}

    @staticmethod
    def from_json(value: Any) -> Specification:
        """Read an entry of a plan. Raises ArtifactError for anything that is not one."""
        try:
            weight, static = dict(value["weight"]), value["input"]
            if static is not None and static != DYNAMIC:
                static = InputRange(int(static["bits"]), float(static["scale"]), int(static["zero_point"]))
                if not (static.scale > 0 and static.grid.low <= static.zero_point <= static.grid.high):
                    raise ValueError(f"an input scale must be positive and its zero point on the grid, not {static}")
            specification = Specification(
                int(weight.pop("bits")),
                bool(weight.pop("symmetric")),
                granularity_from_json(weight.pop("granularity")),
                str(weight.pop("scale_type")),
                str(weight.pop("method")),
                None if (scale := weight.pop("scale")) is None else tuple(float(s) for s in scale),
                static,
                str(value["compute"]),
            )
            _ = specification.quantizer
            if weight or specification.compute not in COMPUTE:
                raise ValueError(f"unknown settings {weight or specification.compute!r}")
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ArtifactError(
                f"an entry of the quantization plan cannot be read ({error}): {value!r:.200}"
            ) from error
        return specification
