"""Static activation ranges of a plan: of the inputs of its modules, and of the feature maps that an integer graph keeps on a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from limbeck.errors import DataError
from limbeck.quantization.calibration import calibrate, static_parameters
from limbeck.quantization.grids import IntegerGrid


def activation_ranges(model: nn.Module, task: Any, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Static parameters of signals by name, calibrated on the train split; a signal that never occurred is absent.

    settings: calibration, percentile, examples, batch_size and activation_bits, as in `Quantize`.
    """
    grid = IntegerGrid(settings["activation_bits"], signed=False, symmetric=False)
    try:
        found = calibrate(model, task.batches("train", settings["batch_size"], limit=settings["examples"]), names)
    except DataError as error:
        raise DataError(f"calibration for quantization: {error}") from error
    choose = (settings["calibration"], grid, settings["percentile"])
    return {name: static_parameters(*histogram.range(*choose), grid) for name, histogram in found.items()}


def output_ranges(model: nn.Module, paths: Sequence[str], task: Any, decisions: Mapping[str, Any]) -> dict[str, Any]:
    """The "outputs" of a plan, calibrated anew with the settings the plan was made with."""
    return activation_ranges(model, task, paths, decisions["calibration"])


def output_paths(model: nn.Module, chosen: Sequence[str]) -> list[str]:
    """Modules whose feature maps an integer graph keeps on a grid: convolutions, and the modules around and between them.

    A model without quantized convolutions has none: its linear layers give float outputs.
    """
    convolutions = [path for path in chosen if isinstance(model.get_submodule(path), nn.Conv2d)]
    if not convolutions:
        return []
    around = {path[:end] for path in convolutions for end, letter in enumerate(path) if letter == "."}
    between = {
        path
        for path, module in model.named_modules()
        if path and not list(module.children()) and (path.rpartition(".")[0] in around or "." not in path)
    }
    last = {path for path in chosen if path not in convolutions}
    wanted = (around | between | set(convolutions)) - last
    return [
        path
        for path, module in model.named_modules()
        if path in wanted and type(module) not in (nn.Identity, nn.ModuleList) and not _passes_through(module)
    ]


def _passes_through(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and len(module) == 0
