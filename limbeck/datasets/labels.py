"""Class labels of every split, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError


def class_labels(splits: Mapping[str, Any], name: str, label: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The class names and, per split, the labels as int64 (N,).

    The names are those of the column where it has them. Otherwise text labels are the classes, sorted, and whole
    numbers of the train split span the classes 0..max. Raises DataError for a missing column or value, or a label
    outside the classes, naming the first such row.
    """
    import datasets

    feature = splits["train"].features[label]
    names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    values = {}
    for split, rows in splits.items():
        if label not in rows.column_names:
            raise DataError(f"split {split!r} of data set {name!r} has no column {label!r}")
        values[split] = rows.select_columns(label).with_format(None)[:][label]
        missing = [row for row, value in enumerate(values[split]) if value is None]
        if missing:
            raise DataError(f"split {split!r} of data set {name!r}: row {missing[0]} has no label")
    if names is None and isinstance(values["train"][0], str):
        names = tuple(sorted(set(values["train"])))
        number = {text: place for place, text in enumerate(names)}
        values = {split: [number.get(v, v) for v in column] for split, column in values.items()}
    if names is None:
        whole = [v for v in values["train"] if isinstance(v, int)]
        names = tuple(str(c) for c in range(max(whole, default=-1) + 1))
    return names, {split: _checked(column, names, split, name, label) for split, column in values.items()}


def _checked(values: list[Any], names: tuple[str, ...], split: str, name: str, label: str) -> Tensor:
    for row, value in enumerate(values):
        if not isinstance(value, (int, np.integer)) or not 0 <= value < len(names):
            raise DataError(
                f"split {split!r} of data set {name!r}: row {row} has {label} {value!r}, outside the {len(names)} "
                f"classes 0..{len(names) - 1}. A test split whose labels are all -1 is not public: "
                "use splits={'test': 'validation'}"
            )
    return torch.tensor(values, dtype=torch.long)
