"""From marks to integers: which tensors of an ONNX graph are quantized, and the nodes that do it.

The graph that `limbeck.export.qdq` traced is a float graph with three kinds of marks: `Weight` (codes, scale, zero point),
`Grid` (a quantized module reads this tensor on that grid) and `Range` (a module's output has that range).

A tensor becomes an integer where

1. a Grid says so: these are the module inputs of the torch model, and the only places that change its numbers;
2. a Grid sits behind operators that commute with rounding (max pooling, reshaping): it is wanted before them as well;
3. all operands and the result of an Add, Mul, Concat or average pooling have a grid or a range: then the whole operator
   can be an integer kernel, at the price of rounding its operands on 256 levels;
4. a convolution gives it: on the grid behind the ReLU that follows, so that the ReLU is absorbed, else on its own range.

A stream of float additions (the residual stream of a transformer) has no ranges and stays in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbeck.errors import ExportError, require

COMMUTING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
JOINT = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "LeakyRelu")
LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Grid:
    """An asymmetric uint8 grid."""

    scale: float
    zero_point: int


class Graph:
    """An ONNX graph with the look-ups that placing integers needs."""

    def __init__(self, proto):
        self.proto, self.graph = proto, proto.graph
        self.constants = {initializer.name: initializer for initializer in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.grids: dict[str, Grid] = {}  # wanted by a quantized module
        self.ranges: dict[str, Grid] = {}  # known, used where it pays

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


def expand(path: Path | str) -> None:
    """Replace the marks of a file that `limbeck.export.qdq` traced by QuantizeLinear and DequantizeLinear, in place."""
    onnx = require("onnx", "onnx")
    proto = onnx.load(str(path))
    graph = Graph(proto)
    weights = _expand_weights(graph)
    grid_readers = _take_marks(graph)
    chosen = _choose(graph, grid_readers)
    _insert(graph, chosen, grid_readers)
    _integer_biases(graph, weights)
    _forget_unused(graph)
    kept = [opset for opset in proto.opset_import if opset.domain != "limbeck"]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))


def _attributes(node) -> dict:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _expand_weights(graph: Graph) -> dict[str, str]:
    """Weight -> DequantizeLinear. Returns {float weight: name of its scale} of those that integer kernels take."""
    from onnx import TensorProto, helper, numpy_helper

    scales: dict[str, str] = {}
    narrowed: set[str] = set()
    for node in graph.graph.node:
        if node.domain != "limbeck" or node.op_type != "Weight":
            continue
        settings = _attributes(node)
        codes, scale, zero = node.input
        per_tensor = not graph.constants[scale].dims
        if settings["bits"] == 4 and settings["block_size"]:
            for name in (codes, zero):
                if name not in narrowed:
                    narrowed.add(name)
                    values = numpy_helper.to_array(graph.constants[name])
                    kind = TensorProto.INT4 if values.dtype == np.int8 else TensorProto.UINT4
                    made = helper.make_tensor(name, kind, values.shape, values.flatten())
                    graph.constants[name].CopyFrom(made)
        else:
            scales[node.output[0]] = scale
        node.op_type, node.domain = "DequantizeLinear", ""
        del node.attribute[:]
        if not per_tensor:
            node.attribute.append(helper.make_attribute("axis", settings["axis"]))
        if settings["block_size"]:
            node.attribute.append(helper.make_attribute("block_size", settings["block_size"]))
            scales.pop(node.output[0], None)
    return scales


def _take_marks(graph: Graph) -> dict[tuple[int, int], Grid]:
    """Remove Grid and Range nodes and remember what they said.

    Returns {(index of a node, index of its input): grid} for the inputs that a quantized module reads on its grid.
    """
    source: dict[str, str] = {}

    def origin(name: str) -> str:
        while name in source:
            name = source[name]
        return name

    marked: dict[str, Grid] = {}
    kept = []
    for node in graph.graph.node:
        if node.domain != "limbeck":
            kept.append(node)
            continue
        settings = _attributes(node)
        grid, tensor = Grid(settings["scale"], settings["zero_point"]), origin(node.input[0])
        source[node.output[0]] = tensor
        if node.op_type == "Grid":
            marked[node.output[0]] = grid
            graph.grids.setdefault(tensor, grid)
        else:
            graph.ranges.setdefault(tensor, grid)
    readers: dict[tuple[int, int], Grid] = {}
    for index, node in enumerate(kept):
        for position, name in enumerate(node.input):
            if name in marked:
                readers[index, position] = marked[name]
            node.input[position] = origin(name)
    for value in graph.graph.output:
        if value.name in source:  # the model's output was marked: the name must stay
            writer = next(node for node in kept if origin(value.name) in node.output)
            old = origin(value.name)
            for node in kept:
                for names in (node.input, node.output):
                    names[:] = [value.name if name == old else name for name in names]
            assert value.name in writer.output
            for table in (graph.grids, graph.ranges):
                if old in table:
                    table[value.name] = table.pop(old)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    return readers


def _choose(graph: Graph, grid_readers: dict[tuple[int, int], Grid]) -> dict[tuple[int, int], Grid]:
    """Every (node, input) that reads its tensor on a grid; -1 as the input stands for the node's own result."""
    nodes, readers, writers = list(graph.graph.node), graph.readers(), graph.writers()
    index = {id(node): i for i, node in enumerate(nodes)}
    chosen = dict(grid_readers)
    for node in reversed(nodes):  # grids move up through commuting operators, last one first
        if node.op_type in COMMUTING and node.output[0] in graph.grids:
            graph.grids.setdefault(node.input[0], graph.grids[node.output[0]])
            graph.ranges.setdefault(node.input[0], graph.grids[node.output[0]])

    def result(node) -> str:
        """The tensor behind a node and the ReLU that alone reads it."""
        name = node.output[0]
        after = readers.get(name, [])
        relu = len(after) == 1 and after[0].op_type == "Relu" and name not in graph.outputs
        return after[0].output[0] if relu else name

    def put(name: str) -> None:
        if name not in graph.outputs and graph.grid_of(name):
            chosen[index[id(writers[name])], -1] = graph.grid_of(name)

    for node in nodes:
        operands = [i for i, name in enumerate(node.input) if name and name not in graph.constants]
        if node.op_type in JOINT and graph.grid_of(result(node)) and result(node) not in graph.outputs:
            if all(graph.grid_of(node.input[i]) for i in operands):
                for i in operands:
                    chosen[index[id(node)], i] = graph.grid_of(node.input[i])
                put(result(node))
        elif node.op_type in COMMUTING and node.input[0] in graph.grids and node.output[0] in graph.grids:
            chosen[index[id(node)], 0] = graph.grids[node.input[0]]
        elif node.op_type == "Conv" and (index[id(node)], 0) in grid_readers:
            put(result(node) if graph.grid_of(result(node)) else node.output[0])
    return chosen


def _insert(graph: Graph, chosen: dict[tuple[int, int], Grid], grid_readers: dict[tuple[int, int], Grid]) -> None:
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
        graph.graph.initializer.append(numpy_helper.from_array(np.array(grid.scale, np.float32), scale))
        graph.graph.initializer.append(numpy_helper.from_array(np.array(grid.zero_point, np.uint8), zero))
        graph.constants.update({i.name: i for i in graph.graph.initializer[-2:]})
        made.setdefault(name, []).extend(
            [
                helper.make_node("QuantizeLinear", [name, scale, zero], [f"{result}_codes"], name=f"{result}_quantize"),
                helper.make_node(
                    "DequantizeLinear", [f"{result}_codes", scale, zero], [result], name=f"{result}_dequantize"
                ),
            ]
        )
    for (index, position), grid in chosen.items():
        if position >= 0:
            name = nodes[index].input[position]
            wanted = grid if (index, position) in grid_readers else first[name]
            nodes[index].input[position] = pairs[name, wanted]
    ordered = [node for value in graph.graph.input for node in made.get(value.name, ())]
    for node in nodes:
        ordered.append(node)
        ordered.extend(extra for name in node.output for extra in made.get(name, ()))
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)


def _integer_biases(graph: Graph, weight_scales: dict[str, str]) -> None:
    """Biases of integer Conv and Gemm as int32 on (input scale x weight scale); see `_bias`."""
    from onnx import helper, numpy_helper

    writers, added = graph.writers(), []
    for node in graph.graph.node:
        bias = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
        if bias not in graph.constants or node.input[1] not in weight_scales:
            continue
        reader = writers.get(node.input[0])
        if reader is None or reader.op_type != "DequantizeLinear" or reader.input[1] not in graph.constants:
            continue
        input_scale = numpy_helper.to_array(graph.constants[reader.input[1]])
        weight_scale = numpy_helper.to_array(graph.constants[weight_scales[node.input[1]]])
        codes, scale = _bias(numpy_helper.to_array(graph.constants[bias]), float(input_scale), weight_scale)
        if codes is None:
            continue
        names = [f"{node.output[0]}_bias_{part}" for part in ("codes", "scale", "zero_point", "value")]
        tensors = (codes, scale, np.zeros(scale.shape, np.int32))
        for name, tensor in zip(names, tensors):
            graph.graph.initializer.append(numpy_helper.from_array(tensor, name))
        attributes = {"axis": 0} if scale.ndim else {}
        added.append((node.output[0], helper.make_node("DequantizeLinear", names[:3], [names[3]], **attributes)))
        node.input[2] = names[3]
    before = dict(added)
    ordered = [
        part
        for node in graph.graph.node
        for part in ([before[node.output[0]]] if node.output[0] in before else []) + [node]
    ]
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)


def _bias(bias: np.ndarray, input_scale: float, weight_scale: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Codes int32 (out,) and scale float32 of a bias; None where a code would not fit into 31 bits (the bias stays float)."""
    scale = (weight_scale.astype(np.float32) * np.float32(input_scale)).astype(np.float32)
    codes = np.round(bias.astype(np.float64) / np.maximum(scale.astype(np.float64), np.finfo(np.float32).tiny))
    if np.abs(codes).max(initial=0) > LARGEST_BIAS or not (scale > 0).all():
        return None, scale
    return codes.astype(np.int32), scale


def _forget_unused(graph: Graph) -> None:
    used = {name for node in graph.graph.node for name in node.input} | graph.outputs
    kept = [initializer for initializer in graph.graph.initializer if initializer.name in used]
    if len({initializer.name for initializer in kept}) != len(kept):
        raise ExportError("the exported graph names two constants alike")
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
