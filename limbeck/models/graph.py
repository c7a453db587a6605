"""A graph convolutional network, and the perceptron that sees no edges."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from limbeck.build import Factory, with_lineage
from limbeck.errors import UsageError
from limbeck.models.layers import check_sizes


def flat_edges(edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Edges (B, 2, E) of B graphs of `nodes` nodes, padded with -1, as source and target (edges,) in the flattened (B * nodes)."""
    offset = torch.arange(len(edge_index), device=edge_index.device)[:, None] * nodes
    source, target = edge_index[:, 0], edge_index[:, 1]
    real = source >= 0
    return (source + offset)[real], (target + offset)[real]


def normalized_sum(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 x, with D the degrees of A + I.  x (nodes, width), edges (E,) and (E,) -> (nodes, width)"""
    ones = torch.ones(len(target), device=x.device, dtype=x.dtype)
    degree = torch.ones(len(x), device=x.device, dtype=x.dtype).index_add(0, target, ones)
    scale = degree.rsqrt()[:, None]
    scaled = scale * x
    return scale * scaled.index_add(0, target, scaled[source])


class GraphConvolution(nn.Module):
    """x -> D^-1/2 (A + I) D^-1/2 x W + b.  (B, N, width in) -> (B, N, width out)"""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.linear = nn.Linear(width, out, bias=False)
        self.bias = nn.Parameter(torch.zeros(out))
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        x = self.linear(x)
        return normalized_sum(x.flatten(0, 1), source, target).reshape(x.shape) + self.bias


class GraphNetwork(nn.Module):
    """Graph convolutions with ReLU and dropout between them; with `readout`, the mean over nodes and a linear head.

    `forward(node_features, edge_index, attention_mask=None)`: (B, N, F), (B, 2, E) padded with -1, (B, N) -> logits of nodes
    (B, N, classes), or of graphs (B, classes).
    """

    def __init__(self, features: int, classes: int, width: int, depth: int, dropout: float, readout: bool):
        super().__init__()
        widths = [features, *[width] * (depth - 1), width if readout else classes]
        self.layers = nn.ModuleList(GraphConvolution(a, b) for a, b in itertools.pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes) if readout else None

    def forward(self, node_features: Tensor, edge_index: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        source, target = flat_edges(edge_index, node_features.shape[1])
        x = node_features
        for index, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if index else x, source, target)
            x = x.relu() if index + 1 < len(self.layers) or self.head is not None else x
        if self.head is None:
            return x
        mask = torch.ones(x.shape[:2], device=x.device) if attention_mask is None else attention_mask.to(x.dtype)
        mean = (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return self.head(self.dropout(mean))


def gcn(
    features: int, classes: int, width: int = 64, depth: int = 2, dropout: float = 0.5, readout: bool = False
) -> GraphNetwork:
    """A graph convolutional network of `depth` layers for nodes, or with `readout` for whole graphs.

    Source: Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", 2017, eq. 2 and 9.
    Raises UsageError for bad sizes.
    """
    check_sizes("gcn", width, 1, dropout, features=features, classes=classes, depth=depth)
    arguments = {
        "features": features,
        "classes": classes,
        "width": width,
        "depth": depth,
        "dropout": dropout,
        "readout": readout,
    }
    return with_lineage(GraphNetwork(**arguments), Factory("limbeck.models.graph:gcn", arguments))


class NodePerceptron(nn.Module):
    """Linear layers with ReLU and dropout, each node for itself: `forward(node_features)`, (B, N, F) -> (B, N, classes)."""

    def __init__(self, features: int, classes: int, width: int, depth: int, dropout: float):
        super().__init__()
        widths = [features, *[width] * (depth - 1), classes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, node_features: Tensor) -> Tensor:
        x = node_features
        for index, layer in enumerate(self.layers):
            x = layer(self.dropout(x) if index else x)
            x = x.relu() if index + 1 < len(self.layers) else x
        return x


def node_perceptron(
    features: int, classes: int, width: int = 64, depth: int = 2, dropout: float = 0.5
) -> NodePerceptron:
    """A multi-layer perceptron on the features of single nodes: what a graph network becomes without a graph.

    Raises UsageError for bad sizes.
    """
    check_sizes("node_perceptron", width, 1, dropout, features=features, classes=classes, depth=depth)
    if depth < 2:
        raise UsageError(f"node_perceptron: depth={depth} has no hidden layer; give 2 or more")
    arguments = {"features": features, "classes": classes, "width": width, "depth": depth, "dropout": dropout}
    return with_lineage(NodePerceptron(**arguments), Factory("limbeck.models.graph:node_perceptron", arguments))
