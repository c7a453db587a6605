"""Where integers pay: which tensors of an ONNX graph are quantized, and the nodes that do it.

A tensor becomes an integer where

1. a Grid says so: these are the module inputs of the torch model, and the only places that change its numbers;
2. a Grid sits behind operators that commute with rounding (max pooling, reshaping): it is wanted before them as well;
3. all operands and the result of an Add, Mul, Concat or average pooling have a grid or a range: then the whole operator
   can be an integer kernel, at the price of rounding its operands on 256 levels;
4. a convolution gives it: on the grid behind the ReLU (or clip) that follows, which is so absorbed, else on its own range.

A stream of float additions (the residual stream of a transformer) has no ranges and stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COMMUTING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
JOINT = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "LeakyRelu")
ALL_OPERANDS = ("Add", "Mul", "Concat")  # a constant operand would have no grid
ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True)
class Grid:
    """An asymmetric uint8 grid."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Weight:
    """Names of stored codes and scale; the axis of the scales, None for one scale."""

    codes: str
    scale: str
    axis: int | None


class Graph:
    """An ONNX graph with the look-ups that placing integers needs."""

    def __init__(self, proto):
        self.proto, self.graph = proto, proto.graph
        self.constants = {initializer.name: initializer for initializer in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.grids: dict[str, Grid] = {}  # wanted by a quantized module
        self.ranges: dict[str, Grid] = {}  # known, used where it pays

    def add(self, tensor) -> None:
        """One constant more, or another in the place of one of that name."""
        if tensor.name in self.constants:
            self.constants[tensor.name].CopyFrom(tensor)
        else:
            self.graph.initializer.append(tensor)
            self.constants[tensor.name] = self.graph.initializer[-1]

    def array(self, name: str) -> np.ndarray:
        """The numbers of a constant."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def readers(self) -> dict[str, list]:
        """The nodes that read each tensor, once per input."""
        found: dict[str, list] = {}
        for node in self.graph.node:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def writers(self) -> dict[str, object]:
        """The node that writes each tensor."""
        return {name: node for node in self.graph.node for name in node.output}

    def grid_of(self, name: str) -> Grid | None:
        return self.grids.get(name) or self.ranges.get(name)


def choose(graph: Graph, grid_readers: dict[tuple[int, int], Grid]) -> dict[tuple[int, int], Grid]:
    """Every (node, input) that reads its tensor on a grid; -1 as the input stands for the node's own result."""
    nodes, readers, writers = list(graph.graph.node), graph.readers(), graph.writers()
    index = {id(node): i for i, node in enumerate(nodes)}
    chosen = dict(grid_readers)
    for node in reversed(nodes):  # grids move up through commuting operators, last one first
        if node.op_type in COMMUTING and node.output[0] in graph.grids:
            graph.grids.setdefault(node.input[0], graph.grids[node.output[0]])
            graph.ranges.setdefault(node.input[0], graph.grids[node.output[0]])

    def result(node) -> str:
        """The tensor behind a node and the ReLU or clip that alone reads it."""
        name = node.output[0]
        after = readers.get(name, [])
        absorbed = len(after) == 1 and after[0].op_type in ABSORBED and name not in graph.outputs
        return after[0].output[0] if absorbed else name

    def put(name: str) -> None:
        if name not in graph.outputs and graph.grid_of(name):
            chosen[index[id(writers[name])], -1] = graph.grid_of(name)

    for node in nodes:
        operands = [i for i, name in enumerate(node.input) if name and name not in graph.constants]
        if node.op_type in JOINT and graph.grid_of(result(node)) and result(node) not in graph.outputs:
            complete = node.op_type not in ALL_OPERANDS or len(operands) == len(node.input)
            if complete and all(graph.grid_of(node.input[i]) for i in operands):
                for i in operands:
                    chosen[index[id(node)], i] = graph.grid_of(node.input[i])
                put(result(node))
        elif node.op_type in COMMUTING and node.input[0] in graph.grids and node.output[0] in graph.grids:
            chosen[index[id(node)], 0] = graph.grids[node.input[0]]
        elif node.op_type == "Conv" and (index[id(node)], 0) in grid_readers:
            put(result(node) if graph.grid_of(result(node)) else node.output[0])
    return chosen


def insert(graph: Graph, chosen: dict[tuple[int, int], Grid], grid_readers: dict[tuple[int, int], Grid]) -> None:
    """Quantize and dequantize nodes for every choice, one pair per tensor and grid, right behind the tensor's writer."""
    from onnx import helper, numpy_helper

    nodes = list(graph.graph.node)
    pairs: dict[tuple[str, Grid], str] = {}
    for (index, position), grid in sorted(chosen.items()):
        name = nodes[index].output[0] if position < 0 else nodes[index].input[position]
        pairs.setdefault((name, grid), f"{name}_on_grid_{len(pairs)}")
    first = dict(reversed(list(pairs)))
    made: dict[str, list] = {}
    for number, ((name, grid), result) in enumerate(pairs.items()):
        scale, zero = f"grid_{number}_scale", f"grid_{number}_zero_point"
        graph.add(numpy_helper.from_array(np.array(grid.scale, np.float32), scale))
        graph.add(numpy_helper.from_array(np.array(grid.zero_point, np.uint8), zero))
        made.setdefault(name, []).extend(
            [
                helper.make_node("QuantizeLinear", [name, scale, zero], [f"{result}_codes"], name=f"{result}_quantize"),
                helper.make_node(
                    "DequantizeLinear", [f"{result}_codes", scale, zero], [result], name=f"{result}_dequantize"
                ),
            ]
        )
    integers = {nodes[index].output[0] for index, position in chosen if position < 0}
    for index, node in enumerate(nodes):
        for position, name in enumerate(node.input):
            if (index, position) in grid_readers:
                node.input[position] = pairs[name, chosen[index, position]]
            elif (index, position) in chosen or name in integers:
                node.input[position] = pairs[name, first[name]]
    ordered = [node for value in graph.graph.input for node in made.get(value.name, ())]
    for node in nodes:
        ordered.append(node)
        ordered.extend(extra for name in node.output for extra in made.get(name, ()))
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)
