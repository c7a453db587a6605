"""Weight-only ONNX: MatMulNBits holds the stored codes, and ONNX Runtime computes what the dequantizing path does."""

import collections
import copy

import onnx
import pytest
import torch
from format_models import IDS, model_of, quantized
from torch import nn

from limbeck.errors import ExportError, UsageError
from limbeck.export import OnnxModel, export_onnx
from limbeck.plan import apply
from limbeck.quantization import Quantize, plain_kernels

# settings of one linear layer of 80 inputs, and bits and block size of its MatMulNBits
LAYERS = [
    ({"bits": 2, "weights": 16}, 2, 16),
    ({"bits": 3, "weights": 32}, 4, 32),
    ({"bits": 4, "weights": 48}, 4, 16),
    ({"bits": 4, "weights": "channel", "symmetric": True}, 4, 128),
    ({"bits": 4, "weights": 32, "grid": "affine"}, 4, 32),
    ({"bits": 5, "weights": 16}, 8, 16),
    ({"bits": 8, "weights": "channel"}, 8, 128),
    ({"bits": 8, "weights": 16, "symmetric": False}, 8, 16),
    ({"grid": "ternary", "weights": "tensor"}, 2, 128),
    ({"grid": "binary", "weights": 16}, 2, 16),
]


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(1)
    model = nn.Sequential(*(nn.Linear(80, 80, bias=i % 2 == 0) for i in range(len(LAYERS))))
    for number, (settings, *_) in enumerate(LAYERS):
        quantize = Quantize(activations=None, only=(str(number),), **settings)
        apply(model, quantize.plan(model))
    return model.eval()


def products(path):
    nodes = [node for node in onnx.load(str(path)).graph.node if node.op_type == "MatMulNBits"]
    return [{a.name: a.i for a in node.attribute} for node in nodes]


def test_every_grid_computes_what_its_weights_say(tmp_path, layers):
    x = torch.randn(3, 80)
    done = export_onnx(layers, {"x": x}, tmp_path / "m.onnx", precision="weight_only", accuracy_level=1)
    assert done.difference < 1e-5
    expected = x
    for layer in layers:
        expected = nn.functional.linear(expected, layer.weight, layer.bias)
    assert torch.allclose(OnnxModel(tmp_path / "m.onnx")({"x": x}), expected, atol=1e-5 * float(expected.abs().max()))
    found = products(tmp_path / "m.onnx")
    assert [(one["bits"], one["block_size"]) for one in found] == [(bits, block) for _, bits, block in LAYERS]
    assert all(one["accuracy_level"] == 1 and one["K"] == one["N"] == 80 for one in found)


def test_a_decoder_with_any_batch_and_length_and_integer_activations(tmp_path):
    model = quantized(model_of("llama"), bits=4, weights=32, compute="bfloat16", ignore=("lm_head",))
    before = copy.deepcopy(model.state_dict())
    done = export_onnx(model, {"input_ids": IDS}, tmp_path / "m.onnx", precision="weight_only")
    assert done.dynamic == {"input_ids": {"0": "batch", "1": "length"}} and done.checks == 5
    assert {one["accuracy_level"] for one in products(tmp_path / "m.onnx")} == {4}
    assert 1e-4 < done.difference < 0.05  # level 4 rounds activations to int8
    kinds = collections.Counter(node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node)
    assert kinds["MatMulNBits"] == 14 and kinds["DequantizeLinear"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(m for m in model.modules() if hasattr(m, "specification")).specification.compute == "bfloat16"


@pytest.mark.parametrize("name, layers", [("gpt2", "n_layer"), ("bert", "num_hidden_layers")])
def test_gpt2_and_an_encoder_with_padding(tmp_path, name, layers):
    model = quantized(model_of(name, **{layers: 1}), bits=4, weights=32)
    example = {"input_ids": IDS} | ({"attention_mask": torch.ones_like(IDS)} if name == "bert" else {})
    done = export_onnx(model, example, tmp_path / "m.onnx", precision="weight_only", accuracy_level=1)
    assert done.difference < 1e-5 and done.checks == (6 if name == "bert" else 5)
    assert len(products(tmp_path / "m.onnx")) == sum(hasattr(m, "specification") for m in model.modules())


def test_refused(tmp_path):
    x = {"x": torch.randn(2, 24)}

    def refuse(model, match, error=ExportError, **settings):
        with pytest.raises(error, match=match):
            export_onnx(model, x, tmp_path / "m.onnx", precision="weight_only", **settings)
        assert not list(tmp_path.iterdir())

    linear = nn.Sequential(nn.Linear(24, 16))
    refuse(linear, "no quantized module", UsageError)
    refuse(quantized(linear, bits=4, weights=8), "groups of 8")
    refuse(quantized(linear, grid="nf4", weights=16), "no whole multiples")
    refuse(quantized(linear, bits=8, activations="dynamic"), "inputs are integers too")
    refuse(quantized(linear, bits=8, grid="affine", weights=16), "real offsets")
    good = quantized(linear, bits=4, weights=16)
    refuse(good, "accuracy_level=5", UsageError, accuracy_level=5)
    refuse(good, "optimize", UsageError, optimize="bert")


def test_a_convolution_stays_a_convolution_of_dequantized_weights(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    model = quantized(model, bits=8)
    x = torch.randn(2, 2, 4, 4)
    export_onnx(model, {"x": x}, tmp_path / "m.onnx", precision="weight_only", accuracy_level=0)
    with torch.no_grad(), plain_kernels():
        assert torch.allclose(OnnxModel(tmp_path / "m.onnx")({"x": x}), model(x), atol=1e-5)
    kinds = {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}
    assert {"Conv", "DequantizeLinear", "MatMulNBits"} <= kinds
