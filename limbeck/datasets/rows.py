"""One's own data at the edge: whatever holds examples becomes a function from positions to a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import DataError

ACCEPTED = (
    "a datasets.Dataset, a torch Dataset with a length, a DataLoader over one, a pair (x, y) of arrays or tensors, or a "
    "mapping of columns to arrays or tensors"
)


@dataclass(frozen=True)
class Rows:
    """`take(positions) -> batch` of `size` examples."""

    size: int
    take: Callable[[Sequence[int]], dict[str, Any]]


def rows(data: Any, inputs: tuple[str, ...], labels: str, where: str) -> Rows:
    """Adapt data: pairs (x, y) become {inputs[0]: x, "labels": y}; the column `labels` becomes "labels".

    A DataLoader gives its dataset and collate function; its order, workers and batch size are not used, since the order
    must be a function of the seed. Of a datasets.Dataset only inputs, labels and sample_weight are kept. Inputs of type uint8
    (images) become float32 in 0..1, float64 becomes float32, whole-numbered labels int64. Raises DataError for empty
    data, columns of different length or another type.
    """
    from datasets import Dataset as HubDataset
    from torch.utils.data import DataLoader, IterableDataset, default_collate

    def named(batch: Any) -> dict[str, Any]:
        return _named(batch, inputs, labels, where)

    collate = default_collate
    if isinstance(data, DataLoader):
        collate, data = data.collate_fn or default_collate, data.dataset
    if isinstance(data, HubDataset):
        if data.format["type"] != "custom":  # a transform of the user's own stays
            kept = [name for name in data.column_names if name in (*inputs, labels, "labels", "sample_weight")]
            data = data.select_columns(kept).with_format("torch")
        made = Rows(len(data), lambda at: named({k: _tensor(v, where, k) for k, v in data[list(at)].items()}))
    elif isinstance(data, Mapping) or (isinstance(data, (tuple, list)) and len(data) == 2 and _array(data[0])):
        columns = data if isinstance(data, Mapping) else {inputs[0]: data[0], "labels": data[1]}
        tensors = {name: _tensor(values, where, name) for name, values in columns.items()}
        sizes = {name: len(values) for name, values in tensors.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(f"{where}: the columns must be of one length, not {sizes}")
        made = Rows(
            next(iter(sizes.values())), lambda at: named({k: v[torch.as_tensor(at)] for k, v in tensors.items()})
        )
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, (IterableDataset, str)):
        made = Rows(len(data), lambda at: named(collate([data[i] for i in at])))
    else:
        raise DataError(f"{where} is a {type(data).__name__}; it must be {ACCEPTED}")
    if not made.size:
        raise DataError(f"{where} is empty")
    named_keys = set(made.take([0]))
    if missing := [key for key in (*inputs, "labels") if key not in named_keys]:
        raise DataError(f"{where} has no column {missing[0]!r}, only {sorted(named_keys)}. Set inputs= and labels=")
    return made


def _array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _tensor(value: Any, where: str, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, Tensor) for v in value):
        shapes = {tuple(v.shape) for v in value}
        if len(shapes) != 1:
            raise DataError(
                f"{where}: rows of column {name!r} differ in shape, {sorted(shapes)[:3]}; pad or resize them"
            )
        return torch.stack(list(value))
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: column {name!r} holds no numbers: {error}. Tokenize or drop it first") from error


def _named(batch: Any, inputs: tuple[str, ...], labels: str, where: str) -> dict[str, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) == len(inputs) + 1:
        batch = dict(zip((*inputs, "labels"), batch))
    if not isinstance(batch, Mapping):
        raise DataError(
            f"{where}: an example must be a mapping or a tuple of {', '.join(inputs)} and the label, "
            f"not {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
    return {
        "labels" if key == labels else key: _cast(value, key in inputs, key == labels) for key, value in batch.items()
    }


def _cast(value: Any, is_input: bool, is_label: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if is_input and value.dtype == torch.uint8:
        return value.float() / 255
    if value.dtype == torch.float64:
        return value.float()
    return value.long() if is_label and not value.is_floating_point() else value
