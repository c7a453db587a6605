"""Tables of embeddings on a grid: of a small encoder they are half of the parameters, and of a quantized one nearly all the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from limbeck.errors import UsageError
from limbeck.plan import Plan
from limbeck.quantization.quantize import KIND, Quantize, choose
from limbeck.quantization.quantized_embedding import stores_rows
from limbeck.quantization.replacement import why_not_table


@dataclass(frozen=True)
class QuantizeEmbeddings:
    """Put tables of embeddings (`nn.Embedding`) on a grid, to the nearest; rows are decoded when they are looked up.

        row_i  ->  codes_i, s_i            lookup(i) = decode(codes_i, s_i)

    bits, weights, symmetric, method, scale_type, grid      as in `Quantize`; "channel" is one scale per row. Parameters that belong
                                                            to a run of rows ("16 rows") are refused
    only, ignore                                            patterns of module paths

    Tables that are tied to a head, subclasses of Embedding and tables in float16 are left alone and listed in
    plan.decisions["left_alone"]. Raises UsageError for settings that cannot be right and when nothing would be quantized.
    """

    bits: int = 8
    weights: str | int = "channel"
    symmetric: bool | None = None
    method: str | None = None
    scale_type: str | None = None
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    grid: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("only", "ignore"):
            object.__setattr__(self, name, getattr(self.settings, name))

    @property
    def settings(self) -> Quantize:
        """The same as a setting of `Quantize`."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Quantize(**named, activations=None)

    def plan(self, model: nn.Module, task: Any = None, budget: Any = None) -> Plan:
        """Decide; nothing is read but the model."""
        plan = self.plan_modules(model)
        if not plan.decisions["modules"] and not self.settings.specification.quantizer.grid.identity:
            left = plan.decisions["left_alone"]
            reasons = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:5]) or "it has no float tables"
            raise UsageError(f"no embedding in {type(model).__name__} can be quantized ({reasons})")
        return plan

    def plan_modules(self, model: nn.Module) -> Plan:
        """The plan, also where it quantizes nothing."""
        specification = self.settings.specification
        if specification.quantizer.grid.identity:
            return Plan(KIND, {"modules": {}, "outputs": {}, "left_alone": {}})

        def fits(module: nn.Module) -> str | None:
            shape = tuple(module.weight.shape)
            reason = specification.fits(shape)
            return reason or (None if stores_rows(specification, shape) else "its rows share what the grid stores")

        tables = {path for path, m in model.named_modules() if isinstance(m, nn.Embedding)}
        chosen, left = choose(model, self.settings.only, self.settings.ignore, why_not_table, fits)
        modules = {}
        for path, kind in chosen.items():
            compute = str(model.get_submodule(path).weight.dtype).removeprefix("torch.")
            modules[path] = {"type": kind, **specification.to_json(), "compute": compute}
        left = {path: reason for path, reason in left.items() if path in tables}
        return Plan(KIND, {"modules": modules, "outputs": {}, "left_alone": left})
