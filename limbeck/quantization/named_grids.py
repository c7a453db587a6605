"""Grids by name, and as JSON.

named("nf4"), named("kmeans", bits=4), named({"name": "power", "bits": 4, "exponent": 0.4})      a grid
grid_to_json(grid)   {"kind": "NormalFloatGrid", "bits": 4}                                      what a plan holds
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from limbeck.errors import ArtifactError, UsageError, did_you_mean
from limbeck.quantization.affine_grid import AffineGrid
from limbeck.quantization.binaries import BinarySum
from limbeck.quantization.codebooks import CodebookGrid
from limbeck.quantization.contract import Grid
from limbeck.quantization.fixed_point import FixedPointGrid
from limbeck.quantization.formats import (
    BinaryGrid,
    LevelSet,
    LogGrid,
    MinifloatGrid,
    NormalFloatGrid,
    PowerGrid,
    TernaryGrid,
)
from limbeck.quantization.fourth_roots import FourthRootGrid
from limbeck.quantization.grids import IntegerGrid
from limbeck.quantization.lattices import LatticeGrid
from limbeck.quantization.power_grid import SearchedPowerGrid
from limbeck.quantization.pyramids import PyramidGrid
from limbeck.quantization.range_levels import RangeLevelGrid
from limbeck.quantization.two_of_four import TwoOfFourGrid

KINDS: dict[str, type[Grid]] = {
    kind.__name__: kind
    for kind in (
        IntegerGrid,
        AffineGrid,
        FixedPointGrid,
        LogGrid,
        PowerGrid,
        SearchedPowerGrid,
        MinifloatGrid,
        NormalFloatGrid,
        TernaryGrid,
        BinaryGrid,
        LevelSet,
        RangeLevelGrid,
        BinarySum,
        CodebookGrid,
        LatticeGrid,
        PyramidGrid,
        FourthRootGrid,
        TwoOfFourGrid,
    )
}
# name -> (kind, settings, the field that `bits` sets or None where the width is fixed)
NAMES: dict[str, tuple[type[Grid], dict[str, Any], str | None]] = {
    "integer": (IntegerGrid, {}, "bits"),
    "affine": (AffineGrid, {}, "bits"),
    "fixed_point": (FixedPointGrid, {}, "word"),
    "power_of_two": (LogGrid, {}, "bits"),
    "log_sqrt2": (LogGrid, {"base": 2**0.5}, "bits"),
    "log": (LogGrid, {}, "bits"),
    "power": (PowerGrid, {}, "bits"),
    "searched_power": (SearchedPowerGrid, {}, "bits"),
    "normal_float": (NormalFloatGrid, {}, "bits"),
    "nf4": (NormalFloatGrid, {"bits": 4}, None),
    "nf3": (NormalFloatGrid, {"bits": 3}, None),
    "fp8_e4m3": (MinifloatGrid, {"exponent": 4, "mantissa": 3, "special": "nan"}, None),
    "fp8_e5m2": (MinifloatGrid, {"exponent": 5, "mantissa": 2, "special": "ieee"}, None),
    "fp6_e3m2": (MinifloatGrid, {"exponent": 3, "mantissa": 2}, None),
    "fp6_e2m3": (MinifloatGrid, {"exponent": 2, "mantissa": 3}, None),
    "fp4": (MinifloatGrid, {"exponent": 2, "mantissa": 1}, None),
    "ternary": (TernaryGrid, {}, None),
    "binary": (BinaryGrid, {}, None),
    "levels": (LevelSet, {}, None),
    "range_levels": (RangeLevelGrid, {}, "width"),
    "binaries": (BinarySum, {}, "terms"),
    "dual_binary": (BinarySum, {"terms": 2, "low": 0}, None),
    "kmeans": (CodebookGrid, {}, "index_bits"),
    "e8": (LatticeGrid, {}, "width"),
    "pyramid": (PyramidGrid, {}, None),
    "two_of_four": (TwoOfFourGrid, {}, "width"),
    "fourth_roots": (FourthRootGrid, {}, "stages"),
}


def named(grid: str | Mapping[str, Any] | Grid, bits: int | None = None) -> Grid:
    """A grid from its name, or from a mapping of its name and settings. bits: where the name leaves the width open.

    Raises UsageError for an unknown name or setting, and for a width that the name does not have.
    """
    if isinstance(grid, Grid):
        return grid
    given = dict(grid) if isinstance(grid, Mapping) else {"name": grid}
    name = given.pop("name", None)
    if name not in NAMES:
        raise UsageError(f"grid={grid!r}: unknown. {did_you_mean(str(name), NAMES)}")
    kind, settings, width = NAMES[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    if set(given) - fields or set(given) & set(settings):
        raise UsageError(
            f"grid={grid!r}: {name!r} has the settings {', '.join(sorted(fields - set(settings))) or 'none'}"
        )
    if width is not None and bits is not None:
        given.setdefault(width, bits)
        if given[width] != bits:
            raise UsageError(f"bits={bits!r}: the grid says {given[width]}; leave one of them out")
    made = kind(**settings, **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    if width is None and bits is not None and made.bits != bits:
        raise UsageError(f"bits={bits!r}: the grid {name!r} has {made.bits} bits; leave bits out")
    return made


def open_width(grid: str | Mapping[str, Any]) -> bool:
    """Whether the name leaves its bits open, and no setting says them."""
    name = grid.get("name") if isinstance(grid, Mapping) else grid
    width = NAMES[name][2] if name in NAMES else None
    return width is not None and not (isinstance(grid, Mapping) and width in grid)


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """{"kind": class name, settings}."""
    settings = dataclasses.asdict(grid)
    return {"kind": type(grid).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}}


def grid_from_json(value: Any) -> Grid:
    """The reverse of `grid_to_json`. Raises ArtifactError for anything that it could not have written."""
    settings = dict(value) if isinstance(value, Mapping) else {}
    kind = KINDS.get(str(settings.pop("kind", None)))
    if kind is None or set(settings) != {field.name for field in dataclasses.fields(kind)}:
        raise ArtifactError(f"{value!r:.200} is no grid of this Limbeck")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
    except (UsageError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{value!r:.200} is no grid: {error}") from error
