"""QDQ export: on hand-made graphs node by node, and whole models in ONNX Runtime against torch."""

import collections
import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from limbeck.errors import ExportError, UsageError
from limbeck.export.onnx import export_onnx
from limbeck.export.qdq import export_qdq
from limbeck.export.qdq_graph import expand
from limbeck.models import resnet
from limbeck.plan import apply
from limbeck.quantization import FoldBatchNorm, Quantize, plain_kernels


class Examples:
    """As much of a task as calibration reads."""

    def __init__(self, *shape, count=24, key="pixel_values"):
        self.x, self.key = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5)), key

    def example(self, batch_size=1):
        return {self.key: self.x[:batch_size]}

    def batches(self, split, batch_size, *, limit=None, **_):
        yield {self.key: self.x}


def session(path, optimized=None):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def kinds(path):
    return collections.Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def mark(kind, source, result, scale, zero_point=0):
    return helper.make_node(kind, [source], [result], domain="limbeck", scale=scale, zero_point=zero_point)


def hand_made(path, nodes, inputs, outputs, constants):
    """Write a graph with marks; inputs and outputs are {name: shape}."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in group.items()]
        for group in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("limbeck", 1)]
    graph = helper.make_graph(nodes, "graph", *values, tensors)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))


def on_grid(x, scale, zero):
    return (np.clip(np.round(x / np.float32(scale)) + zero, 0, 255) - zero) * np.float32(scale)


def weight_constants(generator, out, channels, size, prefix="w"):
    return {
        f"{prefix}_codes": generator.integers(-127, 128, (out, channels, size, size)).astype(np.int8),
        f"{prefix}_scale": generator.uniform(0.001, 0.01, out).astype(np.float32),
        f"{prefix}_zero": np.zeros(out, np.int8),
    }


def weight_node(prefix, result):
    inputs = [f"{prefix}_codes", f"{prefix}_scale", f"{prefix}_zero"]
    return helper.make_node("Weight", inputs, [result], domain="limbeck", axis=0, block_size=0, bits=8)


def test_a_residual_block_becomes_integer_throughout(tmp_path):
    """relu(conv(x) + x) and a second convolution: what each tensor is rounded on, worked out by hand."""
    generator = np.random.default_rng(0)
    constants = weight_constants(generator, 4, 4, 3, "a") | weight_constants(generator, 2, 4, 1, "b")
    constants |= {"bias": generator.normal(size=4).astype(np.float32)}
    nodes = [
        weight_node("a", "wa"),
        mark("Grid", "x", "x_grid", 0.03, 120),
        helper.make_node("Conv", ["x_grid", "wa", "bias"], ["y"], pads=[1, 1, 1, 1]),
        mark("Range", "y", "y_range", 0.05, 100),
        helper.make_node("Add", ["y_range", "x"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r"]),
        mark("Grid", "r", "r_grid", 0.04, 0),
        weight_node("b", "wb"),
        helper.make_node("Conv", ["r_grid", "wb"], ["out"]),
        mark("Range", "out", "final", 0.5, 128),
    ]
    path = tmp_path / "block.onnx"
    hand_made(path, nodes, {"x": ["n", 4, 5, 5]}, {"final": ["n", 2, 5, 5]}, constants)
    expand(path)
    onnx.checker.check_model(str(path))
    assert kinds(path)["QuantizeLinear"] == 3 and {o.domain for o in onnx.load(str(path)).opset_import} == {""}
    x = generator.normal(size=(2, 4, 5, 5)).astype(np.float32)
    found = session(path, tmp_path / "optimized.onnx").run(None, {"x": x})[0]
    wa, wb = (constants[f"{p}_codes"] * constants[f"{p}_scale"][:, None, None, None] for p in "ab")
    xq = on_grid(x, 0.03, 120)
    y = nn.functional.conv2d(*map(torch.from_numpy, (xq, wa, constants["bias"])), padding=1).numpy()
    r = on_grid(np.maximum(on_grid(y, 0.05, 100) + xq, 0), 0.04, 0)
    expected = nn.functional.conv2d(torch.from_numpy(r), torch.from_numpy(wb)).numpy()
    assert np.abs(found - expected).max() < 0.04 * np.abs(wb).sum((1, 2, 3)).max() * 0.51
    assert np.abs(found - expected).mean() < 1e-3
    fused = kinds(tmp_path / "optimized.onnx")
    assert fused["QLinearConv"] >= 1 and fused["QLinearAdd"] == 1 and fused["Relu"] == 0


def test_float_additions_stay_float(tmp_path):
    """A residual stream without ranges is not rounded, though a quantized product reads it."""
    generator = np.random.default_rng(0)
    constants = {
        "w_codes": generator.integers(-127, 128, (4, 4)).astype(np.int8),
        "w_scale": np.full(4, 0.01, np.float32),
        "w_zero": np.zeros(4, np.int8),
    }
    nodes = [
        helper.make_node(
            "Weight", ["w_codes", "w_scale", "w_zero"], ["w"], domain="limbeck", axis=1, block_size=0, bits=8
        ),
        mark("Grid", "x", "x_grid", 0.1, 128),
        helper.make_node("MatMul", ["x_grid", "w"], ["y"]),
        helper.make_node("Add", ["y", "x"], ["out"]),
    ]
    path = tmp_path / "stream.onnx"
    hand_made(path, nodes, {"x": ["n", 4]}, {"out": ["n", 4]}, constants)
    expand(path)
    x = generator.normal(size=(3, 4)).astype(np.float32)
    expected = on_grid(x, 0.1, 128) @ (constants["w_codes"] * np.float32(0.01)) + x
    assert np.abs(session(path).run(None, {"x": x})[0] - expected).max() < 1e-5


def test_an_addition_with_an_operand_of_unknown_range_stays_float(tmp_path):
    constants = weight_constants(np.random.default_rng(0), 3, 3, 1, "a")
    nodes = [
        weight_node("a", "wa"),
        mark("Grid", "x", "x_grid", 0.03, 120),
        helper.make_node("Conv", ["x_grid", "wa"], ["y"]),
        mark("Range", "y", "y_range", 0.05, 128),
        helper.make_node("Add", ["y_range", "z"], ["sum"]),
        mark("Range", "sum", "sum_range", 0.05, 128),
        helper.make_node("Sigmoid", ["sum_range"], ["out"]),
    ]
    path = tmp_path / "unknown.onnx"
    shape = ["n", 3, 2, 2]
    hand_made(path, nodes, {"x": shape, "z": shape}, {"out": shape}, constants)
    expand(path)
    proto = onnx.load(str(path))
    assert not any(
        "sum" in node.input or "z" in node.input for node in proto.graph.node if node.op_type == "QuantizeLinear"
    )
    session(path)


def test_a_grid_moves_before_max_pooling_without_changing_anything(tmp_path):
    generator = np.random.default_rng(0)
    constants = weight_constants(generator, 3, 3, 1, "a") | weight_constants(generator, 2, 3, 1, "b")
    nodes = [
        weight_node("a", "wa"),
        mark("Grid", "x", "x_grid", 0.03, 120),
        helper.make_node("Conv", ["x_grid", "wa"], ["y"]),
        helper.make_node("Relu", ["y"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        mark("Grid", "m", "m_grid", 0.02, 0),
        weight_node("b", "wb"),
        helper.make_node("Conv", ["m_grid", "wb"], ["out"]),
    ]
    path = tmp_path / "pool.onnx"
    hand_made(path, nodes, {"x": ["n", 3, 4, 4]}, {"out": ["n", 2, 2, 2]}, constants)
    expand(path)
    x = generator.normal(size=(2, 3, 4, 4)).astype(np.float32)
    found = session(path, tmp_path / "optimized.onnx").run(None, {"x": x})[0]
    wa, wb = (torch.from_numpy(constants[f"{p}_codes"] * constants[f"{p}_scale"][:, None, None, None]) for p in "ab")
    r = nn.functional.conv2d(torch.from_numpy(on_grid(x, 0.03, 120)), wa).relu()
    expected = nn.functional.conv2d(torch.from_numpy(on_grid(nn.functional.max_pool2d(r, 2).numpy(), 0.02, 0)), wb)
    assert np.abs(found - expected.numpy()).mean() < 1e-4
    assert kinds(tmp_path / "optimized.onnx")["QLinearConv"] >= 1


def test_channels_without_weights_keep_their_bias(tmp_path):
    """A channel whose weights are next to nothing has a bias code beyond 32 bits on its own scale."""
    constants = weight_constants(np.random.default_rng(0), 3, 2, 1, "a")
    constants["a_scale"][1] = 1e-12
    constants["bias"] = np.array([0.3, -4.0, 0.1], np.float32)
    nodes = [
        weight_node("a", "wa"),
        mark("Grid", "x", "x_grid", 0.03, 120),
        helper.make_node("Conv", ["x_grid", "wa", "bias"], ["y"]),
        mark("Range", "y", "y_range", 0.05, 128),
        helper.make_node("GlobalAveragePool", ["y_range"], ["g"]),
        mark("Range", "g", "g_range", 0.05, 128),
        helper.make_node("Sigmoid", ["g_range"], ["out"]),
    ]
    path = tmp_path / "dead.onnx"
    hand_made(path, nodes, {"x": ["n", 2, 3, 3]}, {"out": ["n", 3, 1, 1]}, constants)
    expand(path)
    x = np.random.default_rng(1).normal(size=(2, 2, 3, 3)).astype(np.float32)
    found = session(path).run(None, {"x": x})[0]
    assert np.allclose(found[:, 1], 1 / (1 + np.exp(4.0)), atol=2e-3)


@pytest.fixture(scope="module")
def network():
    task = Examples(3, 16, 16)
    torch.manual_seed(0)
    model = resnet(8).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    model = apply(model, FoldBatchNorm().plan(model))
    return task, model, apply(copy.deepcopy(model), Quantize().plan(model, task))


def test_a_resnet_runs_on_integers_and_agrees_with_torch(network, tmp_path):
    task, model, quantized = network
    path = export_qdq(quantized, task.example(2), tmp_path / "model.onnx")
    runner = session(path, tmp_path / "optimized.onnx")
    found = runner.run(None, {"pixel_values": task.x.numpy()})[0]
    with torch.no_grad(), plain_kernels():
        expected, original = quantized(task.x).numpy(), model(task.x).numpy()
    size = np.abs(expected).max()
    assert np.abs(found - expected).max() < 0.03 * size
    assert np.sqrt(((found - original) ** 2).mean()) < 2 * np.sqrt(((expected - original) ** 2).mean()) + 0.002 * size
    fused = kinds(tmp_path / "optimized.onnx")
    assert fused["QLinearConv"] == 9 and fused["QLinearAdd"] == 3 and fused["QGemm"] == 1
    assert fused["Conv"] == fused["Relu"] == fused["Add"] == 0
    assert path.stat().st_size < 0.45 * sum(p.nbytes for p in model.parameters())
    stored = {i.name: numpy_helper.to_array(i) for i in onnx.load(str(path)).graph.initializer}
    codes = quantized.layer1[0].conv1.codes.numpy()
    assert any(value.shape == codes.shape and (value == codes).all() for value in stored.values())


CHAINS = {
    "static": {},
    "dynamic": {"activations": "dynamic"},
    "int8": {"activations": None},
    "int4_group": {"activations": None, "bits": 4, "weights": 32},
    "int4_group_symmetric": {"activations": None, "bits": 4, "weights": 32, "symmetric": True},
    "tensor": {"weights": "tensor"},
}


@pytest.mark.parametrize("chain", CHAINS)
def test_linear_layers_in_every_form(chain, tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(32, 64), nn.LayerNorm(32), nn.Linear(64, 32, bias=False)
            self.head = nn.Linear(32, 5)

        def forward(self, hidden):
            hidden = self.norm(hidden + self.second(torch.relu(self.first(hidden))))
            return self.head(hidden.mean(1))

    torch.manual_seed(0)
    task, model = Examples(6, 32, key="hidden"), Block().eval()
    quantized = apply(copy.deepcopy(model), Quantize(**CHAINS[chain]).plan(model, task))
    path = export_qdq(quantized, task.example(2), tmp_path / "model.onnx")
    found = session(path).run(None, {"hidden": task.x.numpy()})[0]
    with torch.no_grad(), plain_kernels():
        expected = quantized(task.x).numpy()
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    if chain.startswith("int4"):
        stored = onnx.load(str(path)).graph.initializer
        assert sum(i.data_type in (TensorProto.INT4, TensorProto.UINT4) for i in stored) >= 3


def test_dynamic_inputs_with_a_range_per_token_are_what_torch_computes(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 6)).eval()
    quantized = apply(copy.deepcopy(model), Quantize(activations="dynamic").plan(model))
    x = torch.randn(4, 5, 32) * torch.logspace(-3, 2, 20).view(4, 5, 1)
    x[1, 2] = 0.0
    with torch.no_grad():
        expected = quantized(x)
    size = expected.abs().amax(-1, keepdim=True)

    def furthest(ranges):
        path = tmp_path / f"{ranges}.onnx"
        export_onnx(quantized, {"x": x}, path, precision="int8", input_ranges=ranges)
        found = torch.from_numpy(session(path).run(None, {"x": x.numpy()})[0])
        return float(((found - expected).abs() / size).max()), kinds(path)

    (token, its), (tensor, usual) = furthest("token"), furthest("tensor")
    assert furthest(None) == (token, its)
    assert token < 1e-5 and its["MatMulInteger"] == its["QuantizeLinear"] == 2
    assert tensor > 0.05 and usual["DynamicQuantizeLinear"] == 2
    static = apply(copy.deepcopy(model), Quantize(activations=None).plan(model))
    for other, ranges, words in (
        (quantized, "row", "input_ranges='row'"),
        (static, "token", "activations: dynamic"),
        (static, "tensor", "activations: dynamic"),
    ):
        with pytest.raises(UsageError, match=words):
            export_onnx(other, {"x": x}, tmp_path / "no.onnx", precision="int8", input_ranges=ranges)
    assert not (tmp_path / "no.onnx").exists()


def test_what_has_no_onnx_form_is_refused(network, tmp_path):
    task, model, _quantized = network
    example = task.example(2)
    for settings, words in (
        ({"activations": "dynamic"}, "dynamic inputs has no fast ONNX form"),
        ({"activation_bits": 4}, "inputs of 4 bits"),
        ({"activations": None, "bits": 4, "weights": 32}, "do not divide into groups of 32"),
    ):
        other = apply(copy.deepcopy(model), Quantize(**settings).plan(model, task))
        with pytest.raises(ExportError, match=words):
            export_qdq(other, example, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="no quantized module"):
        export_qdq(model, example, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
