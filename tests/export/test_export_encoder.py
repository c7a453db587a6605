"""The written ONNX graph of a quantized sentence encoder against the quantized torch module, and what it is made of."""

from collections import Counter

import onnx
import pytest
import torch

from limbeck.export.encoder import fits, write_encoder
from limbeck.export.onnx import export_onnx
from limbeck.export.runtime import OnnxModel
from limbeck.measure.sessions import onnx_form
from limbeck.models.sentence_encoder import sentence_encoder
from limbeck.plan import apply
from limbeck.quantization.quantize import Quantize

CONFIG = {
    "model_type": "bert", "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 16,
}  # fmt: skip


class Texts:
    """The part of a task that calibration and export need."""

    def batches(self, split, batch_size, **_):
        for seed in range(4):
            yield self.example(8, seed)

    def size(self, split):
        return 32

    def digest(self):
        return "texts"

    def example(self, batch_size=2, seed=0):
        draws = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 13, (batch_size,), generator=draws)
        mask = (torch.arange(12) < lengths[:, None]).long()
        return {"input_ids": torch.randint(5, 60, (batch_size, 12), generator=draws), "attention_mask": mask}


def make(activation, pooling, quantized=True, **settings):
    torch.manual_seed(0)
    model = sentence_encoder({**CONFIG, "hidden_act": activation}, pooling=pooling).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    if quantized:
        model = apply(model, Quantize(calibration="minmax", **settings).plan(model, Texts()))
    return model


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_equals_the_quantized_torch_module(activation, pooling, tmp_path):
    model = make(activation, pooling)
    assert fits(model)
    write_encoder(model, tmp_path / "model.onnx")
    runner = OnnxModel(tmp_path / "model.onnx", threads=1)
    for batch in (Texts().example(5, seed=9), {k: v[:1, :4] for k, v in Texts().example(1, seed=10).items()}):
        with torch.no_grad():
            expected = model(**batch)
        found = runner(batch)
        # the embeddings' int8 rows and, now and then, a code that rounds the other way
        assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9995
        assert torch.allclose(found.norm(dim=-1), torch.ones(len(found)), atol=1e-5)


def test_differs_from_torch_by_the_embedding_grid_only(tmp_path):
    """With the table itself on the int8 grid beforehand, only rounding of ties is left."""
    model = make("gelu", "mean")
    table = model.transformer.embeddings.word_embeddings.weight
    scale = table.detach().abs().amax(1, keepdim=True) / 127
    table.data = (table.detach() / scale).round() * scale
    write_encoder(model, tmp_path / "model.onnx")
    batch = Texts().example(6, seed=3)
    with torch.no_grad():
        difference = OnnxModel(tmp_path / "model.onnx", threads=1)(batch) - model(**batch)
    assert difference.abs().max() < 5e-3 and difference.abs().median() < 1e-3


def test_the_graph_is_what_the_kernels_want(tmp_path):
    write_encoder(make("relu", "cls"), tmp_path / "model.onnx")
    found = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(found)
    kinds = Counter(node.op_type for node in found.graph.node)
    assert kinds["Attention"] == 2 and kinds["QGemm"] == 2 and kinds["MatMulIntegerToFloat"] == 10
    # per layer: its input once for q, k, v; the context; the feed-forward input; the last query sees first tokens only
    assert kinds["QuantizeLinear"] == 7
    assert not {"Add", "Relu", "Transpose", "Softmax", "MatMul"} & set(kinds)
    bytes_of = Counter()
    for tensor in found.graph.initializer:
        bytes_of[tensor.data_type] += len(tensor.raw_data)
    assert bytes_of[onnx.TensorProto.INT8] > 60 * 24 + 2 * 12 * 24 * 24 * 0.5
    assert onnx_form(tmp_path / "model.onnx") == "onnxruntime int8"


def test_export_onnx_chooses_and_checks_it(tmp_path):
    result = export_onnx(make("relu", "cls"), Texts(), tmp_path / "model.onnx", precision="int8")
    assert result.difference < 0.1 and result.checks >= 5
    assert any(node.op_type == "QGemm" for node in onnx.load(str(tmp_path / "model.onnx")).graph.node)


def test_floats_that_stayed_are_floats_in_the_graph(tmp_path):
    model = make("gelu", "mean", ignore=("*.layer.0.*",))
    assert fits(model)
    write_encoder(model, tmp_path / "model.onnx")
    batch = Texts().example(3, seed=5)
    with torch.no_grad():
        expected = model(**batch)
    found = OnnxModel(tmp_path / "model.onnx", threads=1)(batch)
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.9995


@pytest.mark.parametrize("settings", [{"activations": "dynamic"}, {"activations": None}, {"weights": 8}, {"bits": 4}])
def test_other_grids_go_the_general_way(settings):
    model = make("gelu", "mean", quantized=False)
    settings = {"activations": None, **settings} if settings.get("weights") else settings
    assert not fits(apply(model, Quantize(**settings).plan(model, Texts())))


def test_other_models_go_the_general_way():
    assert not fits(make("relu", "mean", quantized=False))
    assert not fits(torch.nn.Linear(2, 2))
    assert not fits(make("silu", "mean"))
