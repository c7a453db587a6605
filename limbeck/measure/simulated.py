"""What only simulates a cost: fake quantization and masks.

A fake-quantized module computes in floating point what an integer kernel would give; a masked module multiplies its
weight with zeros. Both keep the dense tensors and pay for the simulation on top, so neither has the speed or the size
of what it stands for. Zeros that were written into an ordinary weight simulate nothing: such a model is simply dense.
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from limbeck.errors import UsageError


def simulates(module: nn.Module) -> bool:
    """Whether this one module pretends: it says so (`simulates_cost = True`), is a fake quantizer, or carries a mask or a parametrization."""
    said = getattr(module, "simulates_cost", None)
    if isinstance(said, bool):
        return said
    name = type(module).__name__.lower()
    if "fakequant" in name or "fake_quant" in name or parametrize.is_parametrized(module):
        return True
    return any(
        name.endswith("_mask") and name[: -len("_mask")] + "_orig" in module._parameters for name in module._buffers
    )


def simulated_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that only simulate a cost, in model order."""
    return [path or "(model)" for path, module in model.named_modules() if simulates(module)]


def reports_real_cost(model: nn.Module) -> bool:
    """Whether what the model takes is what it is: no fake quantization, no masks applied on the fly."""
    return not simulated_modules(model)


def demand_real_cost(model: nn.Module, what: str) -> None:
    """Raises UsageError when `what` (a speed, a memory peak) would be that of a simulation."""
    paths = simulated_modules(model)
    if paths:
        shown = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        raise UsageError(
            f"the {what} of this model would be that of a simulation: {shown} only simulate quantization or sparsity. "
            "Convert the model first (apply the plan for real, or make the masks permanent), or measure its export."
        )
