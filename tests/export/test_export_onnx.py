"""Exported graphs against torch, at several sizes, precisions and with faults planted on the way."""

from __future__ import annotations

import copy

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from transformers import BertConfig, BertModel

from limbeck.errors import ArtifactError, ExportError, LimbeckError, UsageError
from limbeck.export import OnnxModel, check_quality, export_onnx, precision
from limbeck.export import onnx as export
from limbeck.models import gpt
from limbeck.signals import first_tensor


def small_bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)).eval()


def tokens(rows: int = 2, length: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    return {"input_ids": torch.randint(0, 50, (rows, length), generator=generator), "attention_mask": mask}


class SmallConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 4)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).flatten(1))


class Pictures:
    """A task in miniature: seeded noise, labelled by what a reference model says of it."""

    metric, better = "accuracy", "higher"

    def __init__(self, model: nn.Module):
        generator = torch.Generator().manual_seed(3)
        self.pixels = torch.randn(64, 1, 8, 8, generator=generator)
        with torch.no_grad():
            self.labels = first_tensor(model(self.pixels)).argmax(-1)
        self.splits_read: set[str] = set()

    def batches(self, split, batch_size, *, seed=None, epoch=0, augment=False, limit=None, skip=0):
        self.splits_read.add(split)
        for at in range(0, min(64, limit or 64), batch_size):
            yield {"pixel_values": self.pixels[at : at + batch_size], "labels": self.labels[at : at + batch_size]}

    def example(self, batch_size=1):
        return {"pixel_values": self.pixels[:batch_size]}

    def evaluate(self, forward, split="validation", batch_size=256, limit=None):
        right = sum((forward(b).argmax(-1) == b["labels"]).sum().item() for b in self.batches(split, batch_size))
        return {"accuracy": right / 64, "loss": 1 - right / 64}


@pytest.fixture(scope="module")
def conv() -> nn.Module:
    torch.manual_seed(4)
    model = SmallConv()
    model(torch.randn(64, 1, 8, 8) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def exported(conv, tmp_path_factory):
    path = tmp_path_factory.mktemp("float") / "m.onnx"
    return export_onnx(conv, Pictures(conv), path)


@pytest.mark.parametrize(
    ("kind", "optimize", "tolerance"),
    [("float32", None, 1e-4), ("float32", "bert", 1e-4), ("int8_dynamic", "bert", 0.1)],
)
def test_bert_equals_torch_at_other_sizes_and_paddings(tmp_path, kind, optimize, tolerance):
    model = small_bert()
    result = export_onnx(model, tokens(), tmp_path / "m.onnx", precision=kind, optimize=optimize)
    assert result.difference <= tolerance and result.checks == 6
    assert result.dynamic == {name: {"0": "batch", "1": "length"} for name in ("input_ids", "attention_mask")}
    assert result.bytes == (tmp_path / "m.onnx").stat().st_size and len(list(tmp_path.iterdir())) == 1
    assert model.config._attn_implementation == "sdpa"
    runner = OnnxModel(tmp_path / "m.onnx", threads=1)
    for rows, length in ((1, 3), (7, 20)):
        batch = tokens(rows, length)
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        assert (runner(batch) - expected).abs().max() <= tolerance * expected.abs().max()
    operators = {node.op_type for node in onnx.load(str(tmp_path / "m.onnx")).graph.node}
    assert bool(operators & {"Attention", "QAttention"}) == (optimize == "bert")
    assert ("QAttention" in operators) == (kind == "int8_dynamic")


def test_gpt_with_tied_embeddings_of_any_length(tmp_path):
    torch.manual_seed(0)
    model = gpt(50, length=16, depth=1, width=16, heads=2).eval()
    export_onnx(model, {"input_ids": tokens()["input_ids"]}, tmp_path / "m.onnx")
    ids = tokens(3, 16)["input_ids"]
    with torch.no_grad():
        assert torch.allclose(OnnxModel(tmp_path / "m.onnx")({"input_ids": ids}), model(ids), atol=1e-5)


def test_convolution_in_float(conv, exported):
    assert exported.precision == "float32" and exported.opset == export.OPSET and exported.inputs == ("pixel_values",)
    proto = onnx.load(str(exported.path))
    onnx.checker.check_model(proto, full_check=True)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)  # no traces of the source code
    assert [value.name for value in proto.graph.output] == ["logits"]
    assert exported.to_json()["path"] == str(exported.path)
    pixels = torch.randn(9, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(OnnxModel(exported.path)({"pixel_values": pixels, "labels": 0}), conv(pixels), atol=1e-5)


def test_static_int8_is_calibrated_on_the_train_split_only(conv, tmp_path):
    task = Pictures(conv)
    result = export_onnx(conv, task, tmp_path / "m.onnx", precision="int8", calibration=32)
    assert task.splits_read == {"train"}
    proto = onnx.load(str(result.path))
    operators = [node.op_type for node in proto.graph.node]
    assert "QuantizeLinear" in operators and "DequantizeLinear" in operators
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    kernel = next(array for array in weights.values() if array.shape == (8, 1, 3, 3))
    scales = next(array for name, array in weights.items() if array.shape == (8,) and "scale" in name)
    assert kernel.dtype == "int8" and len(set(scales.tolist())) == 8  # one scale per channel
    folded = conv.body[0].weight.detach() * (conv.body[1].weight / (conv.body[1].running_var + 1e-5).sqrt()).view(
        8, 1, 1, 1
    )
    again = torch.from_numpy(kernel.astype("float32") * scales.reshape(8, 1, 1, 1))
    assert (again - folded).abs().max() <= 0.51 * float(scales.max())
    check_quality(result.path, task, task.evaluate(lambda b: conv(b["pixel_values"])), tolerance=0.1)


def test_static_int8_needs_a_task(conv, tmp_path):
    with pytest.raises(UsageError, match="give a Task"):
        export_onnx(conv, {"pixel_values": torch.randn(2, 1, 8, 8)}, tmp_path / "m.onnx", precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_refuses_others(conv, tmp_path):
    result = export_onnx(conv, {"pixel_values": torch.randn(3, 1, 8, 8)}, tmp_path / "m.onnx", dynamic_batch=False)
    assert result.dynamic == {} and result.checks == 1
    runner = OnnxModel(result.path)
    assert runner({"pixel_values": torch.randn(3, 1, 8, 8)}).shape == (3, 4)
    with pytest.raises(UsageError, match=r"\[4, 1, 8, 8\].*takes.*\[3, 1, 8, 8\]"):
        runner({"pixel_values": torch.randn(4, 1, 8, 8)})


def test_quality_that_was_lost_stops_and_sets_the_file_aside(conv, exported, tmp_path):
    path = tmp_path / "m.onnx"
    proto = onnx.load(str(exported.path))
    bias = next(t for t in proto.graph.initializer if "head.bias" in t.name)
    array = numpy_helper.to_array(bias).copy()
    array[2] += 100  # every picture becomes a 2
    bias.CopyFrom(numpy_helper.from_array(array, bias.name))
    onnx.save(proto, str(path))
    task = Pictures(conv)
    before = task.evaluate(lambda b: conv(b["pixel_values"]))
    with pytest.raises(
        ExportError, match=r"accuracy on validation was 1 and is 0(\.\d+)? in ONNX Runtime.*m.onnx.rejected"
    ):
        check_quality(OnnxModel(path), task, before, tolerance=0.01)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx.rejected"]
    assert check_quality(exported.path, task, before, tolerance=0.0)["accuracy"] == 1
    with pytest.raises(UsageError, match="Did you mean 'accuracy'"):
        check_quality(exported.path, task, before, tolerance=0.0, metric="acuracy")
    assert exported.path.exists()


def test_a_lower_metric_is_compared_the_other_way(conv, exported, tmp_path):
    task = Pictures(conv)
    task.metric, task.better = "loss", "lower"
    path = tmp_path / "m.onnx"
    path.write_bytes(exported.path.read_bytes())
    check_quality(path, task, {"loss": 0.5}, tolerance=0.0)  # lower than before is no loss
    with pytest.raises(ExportError, match="loss on validation"):
        check_quality(path, task, {"loss": -0.5}, tolerance=0.1)


def test_a_wrong_graph_is_never_written(conv, exported, tmp_path, monkeypatch):
    def wrong(model, example, path, **_):
        proto = onnx.load(str(exported.path))
        weight = next(t for t in proto.graph.initializer if "head.weight" in t.name)
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr(export, "write_float", wrong)
    (tmp_path / "m.onnx").write_bytes(b"what was there before")
    with pytest.raises(ExportError, match=r"differ from torch by 0\.0"):
        export_onnx(conv, Pictures(conv), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"what was there before" and len(list(tmp_path.iterdir())) == 1
    assert export_onnx(conv, Pictures(conv), tmp_path / "m.onnx", tolerance=0.1).difference > 1e-3


def test_models_that_cannot_be_traced_say_so(tmp_path):
    class Branch(nn.Module):
        def forward(self, pixel_values):
            return pixel_values * 2 if pixel_values.sum() > 0 else pixel_values

    with pytest.raises(ExportError, match="cannot trace Branch"):
        export_onnx(Branch(), {"pixel_values": torch.randn(2, 3)}, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("example", "options", "reason"),
    [
        ({"pixel_values": torch.zeros(2, 1, 8, 8)}, {"precision": "int7"}, "Did you mean 'int8'"),
        ({"pixel_values": torch.zeros(2, 1, 8, 8)}, {"optimize": "gpu"}, "unknown optimization"),
        ({"pixel_values": torch.zeros(2, 1, 8, 8)}, {"optimize": "bert"}, "needs a transformers encoder"),
        ({"pixel_values": torch.zeros(2, 1, 8, 8)}, {"dynamic_length": True}, "dynamic_length needs token inputs"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, {}, "share their first axis"),
        ({"labels": torch.zeros(2)}, {}, "share their first axis"),
        (3, {}, "needs a Task or a batch"),
        ({}, {}, "needs a Task or a batch"),
    ],
)
def test_arguments_that_cannot_be_right(conv, tmp_path, example, options, reason):
    with pytest.raises(UsageError, match=reason):
        export_onnx(conv, example, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_fusing_what_is_not_there_is_an_error(exported, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(exported.path.read_bytes())
    with pytest.raises(ExportError, match="could be fused"):
        precision.fuse_bert(small_bert(), path)


def test_files_and_batches_that_do_not_fit_the_runtime(exported, tmp_path):
    with pytest.raises(ArtifactError, match="no ONNX file"):
        OnnxModel(tmp_path / "absent.onnx")
    (tmp_path / "m.onnx").write_bytes(exported.path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="cannot be loaded by ONNX Runtime"):
        OnnxModel(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"reads \['pixel_values'\]; the batch has \['x'\]"):
        OnnxModel(exported.path)({"x": torch.zeros(1)})
    with pytest.raises(UsageError, match="threads"):
        OnnxModel(exported.path, threads=0)
    assert OnnxModel(exported.path, threads=1).form == "onnxruntime, 1 thread, m.onnx"


def test_a_place_that_cannot_be_written(conv, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="cannot write"):
        export_onnx(conv, Pictures(conv), tmp_path / "file" / "m.onnx")


def test_weights_beyond_one_protobuf_file_lie_beside_it(conv, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "EMBED_LIMIT", 10)
    result = export_onnx(conv, Pictures(conv), tmp_path / "m.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert result.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_half_precision_models_are_exported_in_float32_and_left_alone(conv, tmp_path):
    model = copy.deepcopy(conv).bfloat16().train()
    export_onnx(model, Pictures(conv), tmp_path / "m.onnx")
    assert model.training and model.head.weight.dtype == torch.bfloat16


def test_a_quantized_model_is_exported_on_its_own_grids(conv, tmp_path):
    from limbeck.plan import apply
    from limbeck.quantization import FoldBatchNorm, Quantize

    task = Pictures(conv)
    model = copy.deepcopy(conv)
    for transform in (FoldBatchNorm(), Quantize(examples=64)):
        model = apply(model, transform.plan(model, task)).eval()
    result = export_onnx(model, task, tmp_path / "m.onnx", precision="int8")
    assert result.difference < 0.02  # a step of the grid at most: both round the same codes
    codes = next(m for m in model.modules() if hasattr(m, "codes")).codes.numpy()
    stored = [numpy_helper.to_array(t) for t in onnx.load(str(result.path)).graph.initializer]
    assert any(array.dtype == "int8" and array.shape == codes.shape and (array == codes).all() for array in stored)
    check_quality(result.path, task, task.evaluate(model_of(model)), tolerance=0.05)
    with pytest.raises(UsageError, match="quantized already"):
        export_onnx(model, task, tmp_path / "n.onnx", precision="int8_dynamic")


def model_of(model: nn.Module):
    """`forward(batch)` of a model without gradients."""
    return torch.no_grad()(lambda batch: model(batch["pixel_values"]))
