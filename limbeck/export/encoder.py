"""A quantized BERT sentence encoder as an ONNX graph written for ONNX Runtime's CPU kernels.

Once matrix products are integers, an encoder spends most of its time elsewhere: in attention, layer norms, activations and in moving
float32 between them. So the graph is written operator by operator instead of traced:

    x --QuantizeLinear--> uint8 --+--> q, k, v: MatMulIntegerToFloat --> Attention --QuantizeLinear--> MatMulIntegerToFloat --> + x
                                  (one quantization for the three)                                                             |
    x <-- LayerNormalization <-- + <-- MatMulIntegerToFloat <-- feed-forward, uint8 between its two products <-- LayerNormalization

- Attention is one operator on (B, L, H); nothing is transposed.
- With ReLU, the first feed-forward product writes uint8 directly (QGemm): its zero point 0 clips below zero.
- Residual sums are the operator Sum: after Add, ONNX Runtime fuses a skip layer norm, which on the CPU is several times slower.
- Word embeddings are int8 with one scale per row, 46 -> 12 MB for BERT's vocabulary.
- With "cls" pooling the last layer has one query per text (see `limbeck.models.sentence_encoder`).

Scales and zero points are the module's own. MatMulIntegerToFloat and QGemm are ONNX Runtime's operators (domain com.microsoft).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.errors import require
from limbeck.export.integers import quantized_layers
from limbeck.models.sentence_encoder import SentenceEncoder
from limbeck.quantization.modules import QuantizedLinear
from limbeck.quantization.specification import InputRange

OPSET = 23  # the Attention operator
RUNTIME = "com.microsoft"
ACTIVATIONS = {"relu": ("Relu", ""), "gelu": ("Gelu", RUNTIME)}


def fits(model: nn.Module) -> bool:
    """Whether `write_encoder` can write this model: a BERT sentence encoder whose linears are float or int8 with static inputs."""
    if not isinstance(model, SentenceEncoder) or model.config.model_type != "bert" or model.dense is not None:
        return False
    linears = [m for m in model.transformer.encoder.modules() if isinstance(m, (nn.Linear, QuantizedLinear))]
    static = [m for m in linears if isinstance(m, QuantizedLinear)]
    others = any(m not in static for m in quantized_layers(model).values())
    return (
        bool(static)
        and not others
        and model.config.hidden_act in ACTIVATIONS
        and all(
            m.specification.grid is None and m.bits == 8 and m.specification.symmetric and m.weight_scale.dim() < 2
            for m in static
        )
        and all(isinstance(m.specification.input, InputRange) and m.specification.input.bits == 8 for m in static)
    )


def write_encoder(model: SentenceEncoder, path: Path | str) -> None:
    """Write the graph: inputs input_ids and attention_mask, int64 (batch, length); output logits, float32 (batch, H)."""
    onnx = require("onnx", "onnx")
    graph = _Graph()
    with torch.no_grad():
        logits = _encoder(graph, model.transformer, model.pooling, model.normalize)
    helper, kinds = onnx.helper, onnx.TensorProto
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    made = helper.make_graph(
        graph.nodes,
        "sentence_encoder",
        [helper.make_tensor_value_info(n, kinds.INT64, ["batch", "length"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", kinds.FLOAT, ["batch", model.width])],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME, 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="limbeck"), str(path))


class _Graph:
    """Nodes and constants under running names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        from onnx import numpy_helper

        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(array, dtype, order="C"), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def whole(self, *values: int) -> str:
        return self.constant(values, np.int64)


class _Input:
    """A float tensor of the graph, quantized at most once for every grid that reads it."""

    def __init__(self, graph: _Graph, name: str):
        self.graph, self.name = graph, name
        self._codes: dict[tuple[float, int], tuple[str, str, str]] = {}

    def codes(self, grid: InputRange) -> tuple[str, str, str]:
        """Names of the codes, their scale and their zero point."""
        key = (grid.scale, grid.zero_point)
        if key not in self._codes:
            scale, zero = self.graph.constant(grid.scale), self.graph.constant(grid.zero_point, np.uint8)
            self._codes[key] = (self.graph.add("QuantizeLinear", [self.name, scale, zero]), scale, zero)
        return self._codes[key]

    def first(self) -> _Input:
        """The first token, with its codes: (B, 1, H)."""

        def cut(name: str) -> str:
            g = self.graph
            return g.add("Slice", [name, g.whole(0), g.whole(1), g.whole(1)])

        made = _Input(self.graph, cut(self.name))
        made._codes = {key: (cut(codes), scale, zero) for key, (codes, scale, zero) in self._codes.items()}
        return made


def _encoder(g: _Graph, bert: nn.Module, pooling: str, normalize: bool) -> str:
    shape = g.add("Shape", ["input_ids"])
    length = g.add("Slice", [shape, g.whole(1), g.whole(2)])
    x = _Input(g, _embeddings(g, bert.embeddings, length))
    keys = g.add("Unsqueeze", [g.add("Cast", ["attention_mask"], to=9), g.whole(1, 2)])  # bool (B, 1, 1, L)
    square = g.add("Expand", [keys, g.add("Concat", [g.whole(1, 1), length, g.whole(1)], axis=0)])
    layers = bert.encoder.layer
    for number, layer in enumerate(layers):
        one = pooling == "cls" and number == len(layers) - 1
        x = _layer(g, layer, x, keys if one else square, one, bert.config.hidden_act)
    if pooling == "cls":
        pooled = g.add("Squeeze", [x.name, g.whole(1)])
    else:
        weights = g.add("Unsqueeze", [g.add("Cast", ["attention_mask"], to=1), g.whole(1)])  # (B, 1, L)
        total = g.add("Squeeze", [g.add("MatMul", [weights, x.name]), g.whole(1)])
        pooled = g.add("Div", [total, g.add("ReduceSum", [weights, g.whole(2)], keepdims=0)])
    return g.add("LpNormalization", [pooled], axis=-1, p=2) if normalize else pooled


def _embeddings(g: _Graph, embeddings: nn.Module, length: str) -> str:
    words = embeddings.word_embeddings.weight.float()
    scale = words.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    codes = g.add("Gather", [g.constant((words / scale).round(), np.int8), "input_ids"])
    found = g.add("Mul", [g.add("Cast", [codes], to=1), g.add("Gather", [g.constant(scale), "input_ids"])])
    places = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    placed = g.add("Slice", [g.constant(places), g.whole(0), length, g.whole(0)])
    return _norm(g, [found, placed], embeddings.LayerNorm)


def _norm(g: _Graph, terms: Sequence[str], norm: nn.LayerNorm) -> str:
    weight, bias = g.constant(norm.weight), g.constant(norm.bias)
    return g.add("LayerNormalization", [g.add("Sum", terms), weight, bias], axis=-1, epsilon=norm.eps)


def _linear(g: _Graph, x: _Input, linear: nn.Module) -> str:
    if not isinstance(linear, QuantizedLinear):
        return g.add("Add", [g.add("MatMul", [x.name, g.constant(linear.weight.T)]), g.constant(linear.bias)])
    return _integer(g, x.codes(linear.specification.input), linear)


def _integer(g: _Graph, codes: tuple[str, str, str], linear: QuantizedLinear) -> str:
    x, scale, zero = codes
    weight, weight_scale = _weight(g, linear)
    bias = "" if linear.bias is None else g.constant(linear.bias)
    return g.add("MatMulIntegerToFloat", [x, weight, scale, weight_scale, zero, "", bias], RUNTIME)


def _weight(g: _Graph, linear: QuantizedLinear) -> tuple[str, str]:
    return g.constant(linear.codes.T, np.int8), g.constant(linear.weight_scale.float())


def _layer(g: _Graph, layer: nn.Module, x: _Input, mask: str, one: bool, activation: str) -> _Input:
    own, output = layer.attention.self, layer.attention.output
    keys, values = _linear(g, x, own.key), _linear(g, x, own.value)
    x = x.first() if one else x
    heads = own.query.out_features // own.attention_head_size
    context = g.add(
        "Attention",
        [_linear(g, x, own.query), keys, values, mask],
        q_num_heads=heads,
        kv_num_heads=heads,
        scale=own.scaling,
    )
    attended = _norm(g, [_linear(g, _Input(g, context), output.dense), x.name], output.LayerNorm)
    forward = _feed_forward(g, layer, _Input(g, attended), activation)
    return _Input(g, _norm(g, [forward, attended], layer.output.LayerNorm))


def _feed_forward(g: _Graph, layer: nn.Module, x: _Input, activation: str) -> str:
    first, second = layer.intermediate.dense, layer.output.dense
    both = isinstance(first, QuantizedLinear) and isinstance(second, QuantizedLinear)
    if not (both and activation == "relu" and second.specification.input.zero_point == 0 and first.bias is not None):
        operator, domain = ACTIVATIONS[activation]
        return _linear(g, _Input(g, g.add(operator, [_linear(g, x, first)], domain)), second)
    codes, scale, zero = x.codes(first.specification.input)
    weight, weight_scale = _weight(g, first)
    step = first.specification.input.scale * first.weight_scale.double().expand(first.out_features)
    bias = g.constant((first.bias.double() / step).round().clamp(-(2**31), 2**31 - 1), np.int32)
    zeros = g.constant(np.zeros(tuple(first.weight_scale.shape)), np.int8)
    grid = second.specification.input
    middle_scale, middle_zero = g.constant(grid.scale), g.constant(0, np.uint8)
    rows = g.add("Reshape", [codes, g.whole(-1, first.in_features)])
    middle = g.add("QGemm", [rows, scale, zero, weight, weight_scale, zeros, bias, middle_scale, middle_zero], RUNTIME)
    shape = g.add("Concat", [g.add("Shape", [codes], end=2), g.whole(first.out_features)], axis=0)
    return _integer(g, (g.add("Reshape", [middle, shape]), middle_scale, middle_zero), second)
