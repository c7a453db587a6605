"""Graphs: one with labelled nodes, or many with a label each."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.datasets.load import SPLITS, data_folder, load
from limbeck.errors import DataError


@dataclass(frozen=True)
class Graph:
    """One graph: features (N, F) float32, edges (2, E) as (source, target) with both directions of an undirected edge and no
    self-loop, labels (N,), and for each split the nodes that belong to it."""

    features: Tensor
    edges: Tensor
    labels: Tensor
    nodes: dict[str, Tensor]

    def __post_init__(self) -> None:
        count = len(self.features)
        if self.features.dim() != 2 or tuple(self.labels.shape) != (count,) or self.edges.shape[:-1] != (2,):
            raise DataError(
                f"a graph needs features (N, F), edges (2, E) and labels (N,), not {tuple(self.features.shape)}, "
                f"{tuple(self.edges.shape)} and {tuple(self.labels.shape)}"
            )
        if self.edges.numel() and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < count:
            raise DataError(f"an edge names a node outside 0..{count - 1}")
        if bool((self.edges[0] == self.edges[1]).any()):
            raise DataError("the graph has self-loops: leave them out, models add their own")
        if set(self.nodes) != set(SPLITS):
            raise DataError(f"nodes must name {', '.join(SPLITS)}, not {', '.join(self.nodes) or 'nothing'}")
        members = torch.cat([self.nodes[split] for split in SPLITS])
        if len(members.unique()) != len(members):
            raise DataError("a node belongs to two splits")


def load_graph(name: str) -> Graph:
    """A citation graph such as "cora" or "citeseer": `LIMBECK_DATA/graphs/<name>.npz` with edge_index, x, y and the three masks.

    Rows of x are divided by their sum, as is usual for words. Raises DataError for a missing or damaged file.
    """
    path = data_folder() / "graphs" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            x, y, edges = (torch.from_numpy(found[key]) for key in ("x", "y", "edge_index"))
            masks = {split: torch.from_numpy(found[key]) for split, key in zip(SPLITS, MASKS)}
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        known = sorted(entry.stem for entry in path.parent.glob("*.npz"))
        raise DataError(
            f"graph {name!r} cannot be read from {path}: {error}. Known there: {', '.join(known) or 'none'}. The file holds "
            f"the arrays x, y, edge_index, {', '.join(MASKS)}"
        ) from error
    x = x.float() / x.float().sum(-1, keepdim=True).clamp_min(1)
    edges = edges[:, edges[0] != edges[1]].long()
    return Graph(x, edges, y.long(), {split: mask.nonzero().squeeze(1) for split, mask in masks.items()})


MASKS = ("train_mask", "val_mask", "test_mask")


@dataclass(frozen=True)
class Graphs:
    """Many graphs with one label each: lists of features (N_i, F) and edges (2, E_i), labels (count,)."""

    features: list[Tensor]
    edges: list[Tensor]
    labels: Tensor


def load_graphs(name: str, dataset: str = "graphs_tu") -> dict[str, Graphs]:
    """Every split of a collection of small graphs such as "mutag" or "proteins" (a config of `dataset`).

    Columns: edge_index, y, num_nodes and, where nodes have features, node_feat; without it a node's feature is its degree,
    one-hot up to 32. Raises DataError for a missing column.
    """
    made = {}
    for split, rows in load(dataset, name).items():
        missing = {"edge_index", "y", "num_nodes"} - set(rows.column_names)
        if missing:
            raise DataError(f"data set {dataset!r}, config {name!r}: no column {', '.join(sorted(missing))}")
        rows = rows.with_format("numpy")[:]
        edges = [_edges(row) for row in rows["edge_index"]]
        counts = [int(count) for count in rows["num_nodes"]]
        if "node_feat" in rows:
            features = [torch.tensor(np.stack(list(row)), dtype=torch.float32) for row in rows["node_feat"]]
        else:
            features = [_degrees(edge, count) for edge, count in zip(edges, counts)]
        labels = torch.tensor([int(np.asarray(label).reshape(-1)[0]) for label in rows["y"]])
        made[split] = Graphs(features, edges, labels)
    return made


def _edges(row: Any) -> Tensor:
    made = torch.tensor(np.stack([np.asarray(side) for side in row]).reshape(2, -1), dtype=torch.int64)
    return made[:, made[0] != made[1]]


def _degrees(edges: Tensor, count: int, largest: int = 32) -> Tensor:
    degree = torch.bincount(edges[1], minlength=count).clamp(max=largest)
    return torch.nn.functional.one_hot(degree, largest + 1).float()
