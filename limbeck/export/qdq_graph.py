"""From a traced graph with marks to one of integers: what surrounds `limbeck.export.qdq_placement`.

The graph that `limbeck.export.qdq` traced is a float graph with three kinds of marks: `Weight` (codes, scale, zero point),
`Grid` (a quantized module reads this tensor on that grid) and `Range` (a module's output has that range).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck.errors import ExportError, require
from limbeck.export.qdq_placement import Graph, Grid, Weight, choose, insert

LARGEST_BIAS = 2**30


def expand(path: Path | str) -> None:
    """Replace the marks of a file that `limbeck.export.qdq` traced by QuantizeLinear and DequantizeLinear, in place."""
    onnx = require("onnx", "onnx")
    proto = onnx.load(str(path))
    graph = Graph(proto)
    weights = _expand_weights(graph)
    grid_readers = _take_marks(graph)
    chosen = choose(graph, grid_readers)
    insert(graph, chosen, grid_readers)
    _integer_biases(graph, weights)
    _forget_unused(graph)
    if any(node.domain == "limbeck" for node in graph.graph.node):
        raise ExportError("a mark of the quantized model was left in the exported graph")
    kept = [opset for opset in proto.opset_import if opset.domain != "limbeck"]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    del proto.graph.value_info[:]
    onnx.save(proto, str(path))


def _attributes(node) -> dict:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _expand_weights(graph: Graph) -> dict[str, Weight]:
    """Weight -> DequantizeLinear. Returns the weights that integer kernels take, by the name of their float value."""
    from onnx import TensorProto, helper, numpy_helper

    found: dict[str, Weight] = {}
    for node in graph.graph.node:
        if node.domain != "limbeck" or node.op_type != "Weight":
            continue
        settings = _attributes(node)
        per_tensor = not graph.constants[node.input[1]].dims
        if settings["bits"] == 4 and settings["block_size"]:
            for position in (0, 2):
                name = f"{node.input[position]}_4bit"
                if name not in graph.constants:
                    values = numpy_helper.to_array(graph.constants[node.input[position]])
                    kind = TensorProto.INT4 if values.dtype == np.int8 else TensorProto.UINT4
                    graph.add(helper.make_tensor(name, kind, values.shape, values.flatten()))
                node.input[position] = name
        elif not settings["block_size"]:
            found[node.output[0]] = Weight(node.input[0], node.input[1], None if per_tensor else settings["axis"])
        node.op_type, node.domain = "DequantizeLinear", ""
        del node.attribute[:]
        if not per_tensor:
            node.attribute.append(helper.make_attribute("axis", settings["axis"]))
        if settings["block_size"]:
            node.attribute.append(helper.make_attribute("block_size", settings["block_size"]))
    return found


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
            old = origin(value.name)
            for node in kept:
                for names in (node.input, node.output):
                    names[:] = [value.name if name == old else name for name in names]
            for table in (graph.grids, graph.ranges):
                if old in table:
                    table[value.name] = table.pop(old)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)
    return readers


def _integer_biases(graph: Graph, weights: dict[str, Weight]) -> None:
    """Biases of integer Conv and Gemm as int32 on input scale x weight scale, as their kernels add them."""
    from onnx import helper, numpy_helper

    writers, added = graph.writers(), {}
    for node in graph.graph.node:
        bias = node.input[2] if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 else None
        weight, reader = weights.get(node.input[1]) if bias else None, writers.get(node.input[0])
        if bias not in graph.constants or weight is None or reader is None or reader.op_type != "DequantizeLinear":
            continue
        input_scale = float(graph.array(reader.input[1]))
        if not _room_for_bias(graph, weight, graph.array(bias), input_scale):
            continue
        scale = graph.array(weight.scale) * np.float32(input_scale)
        codes = np.round(graph.array(bias).astype(np.float64) / scale).astype(np.int32)
        names = [f"{node.output[0]}_bias_{part}" for part in ("codes", "scale", "zero_point", "value")]
        for name, tensor in zip(names, (codes, scale, np.zeros(scale.shape, np.int32))):
            graph.add(numpy_helper.from_array(np.asarray(tensor), name))
        attributes = {"axis": 0} if scale.ndim else {}
        added[node.output[0]] = helper.make_node("DequantizeLinear", names[:3], [names[3]], **attributes)
        node.input[2] = names[3]
    ordered = []
    for node in graph.graph.node:
        ordered += [added[node.output[0]], node] if node.output[0] in added else [node]
    del graph.graph.node[:]
    graph.graph.node.extend(ordered)


def _room_for_bias(graph: Graph, weight: Weight, bias: np.ndarray, input_scale: float) -> bool:
    """Make sure that bias codes fit into 31 bits: a channel with next to no weights gets a larger weight scale.

    Such channels (a batch norm whose gain went to 0) contribute nothing but their bias. Returns False when nothing can be
    done, because one scale serves all channels.
    """
    from onnx import numpy_helper

    scale = graph.array(weight.scale).astype(np.float64)
    least = np.maximum(np.abs(bias.astype(np.float64)) / (LARGEST_BIAS * input_scale), np.finfo(np.float32).tiny)
    least = np.maximum(least, np.finfo(np.float32).tiny / input_scale)
    if (scale >= least).all():
        return True
    if weight.axis is None:
        return False
    larger = np.maximum(scale, least)
    codes = graph.array(weight.codes)
    shape = [1] * codes.ndim
    shape[weight.axis] = -1
    codes = np.round(codes * (scale / larger).reshape(shape)).astype(codes.dtype)
    graph.add(numpy_helper.from_array(codes, weight.codes))
    graph.add(numpy_helper.from_array(larger.astype(np.float32), weight.scale))
    return True


def _forget_unused(graph: Graph) -> None:
    used = {name for node in graph.graph.node for name in node.input} | graph.outputs
    kept = [initializer for initializer in graph.graph.initializer if initializer.name in used]
    if len({initializer.name for initializer in kept}) != len(kept):
        raise ExportError("the exported graph names two constants alike")
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
