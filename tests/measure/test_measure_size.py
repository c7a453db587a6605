"""Sizes and layer tables against hand counts."""

import pytest
import torch
from measure_tiny import TinyTask, tiny_model
from safetensors.torch import save
from torch import nn
from torch.nn.utils import prune

from limbeck.errors import DataError, UsageError
from limbeck.measure import (
    count_parameters,
    disk_bytes,
    latency_torch,
    layer_table,
    measure_model,
    model_bytes,
    reports_real_cost,
    simulated_modules,
    state_bytes,
)
from limbeck.measure.latency import torch_form
from limbeck.models import resnet
from limbeck.plan import apply
from limbeck.quantization import Quantize


class PackedLinear(nn.Module):
    """A linear layer of 4-bit codes, two to a byte, as quantized modules keep them."""

    bits = 4

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("codes", torch.zeros(linear.out_features, linear.in_features // 2, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(linear.out_features, dtype=torch.float16))
        self.register_buffer("cache", torch.zeros(1000), persistent=False)
        self.bias = nn.Parameter(linear.bias.detach().clone())

    def forward(self, x):
        return x @ torch.zeros(self.in_features, self.out_features) + self.bias


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.start = nn.Parameter(torch.zeros(4))


def test_a_tied_weight_counts_once():
    model = Tied()
    assert count_parameters(model) == 7 * 4 + 4
    assert model_bytes(model).value == 4 * (7 * 4 + 4)
    rows = layer_table(model)
    assert [row["path"] for row in rows] == ["(model)", "embedding"]
    assert [row["parameters"] for row in rows] == [4, 28]


def test_packed_weights_count_as_stored_and_as_what_they_stand_for():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), PackedLinear(nn.Linear(8, 10)))
    assert count_parameters(model) == 6 * 8 + 8 + 8 * 10 + 10
    packed = 10 * 4 + 2 * 10 + 4 * 10
    assert model_bytes(model).value == 4 * (6 * 8 + 8) + packed
    assert layer_table(model)[1] == {"path": "2", "kind": "PackedLinear", "parameters": 90, "bytes": packed, "bits": 4}
    assert torch_form(model) == "torch int4 weights"
    assert reports_real_cost(model)


@pytest.mark.parametrize("bits", [4, 8])
def test_real_quantized_modules(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    before = count_parameters(model)
    model = apply(model, Quantize(bits=bits, activations=None).plan(model))
    rows = layer_table(model)
    assert count_parameters(model) == before == sum(row["parameters"] for row in rows)
    assert sum(row["bytes"] for row in rows) == model_bytes(model).value == sum(m.nbytes for m in (model[0], model[2]))
    assert [row["bits"] for row in rows] == [bits, bits]
    assert reports_real_cost(model)


def test_a_grouped_convolution_counts_its_groups():
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=4, bias=False))
    model = apply(model, Quantize(bits=8, activations=None).plan(model))
    assert count_parameters(model) == 12 * 2 * 9 == layer_table(model)[0]["parameters"]


def test_rows_add_up_to_the_model_and_to_what_safetensors_writes():
    model = resnet(8)
    rows = layer_table(model)
    assert (
        sum(row["parameters"] for row in rows) == count_parameters(model) == sum(p.numel() for p in model.parameters())
    )
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    header = int.from_bytes(save(state)[:8], "little")
    assert sum(row["bytes"] for row in rows) == model_bytes(model).value == len(save(state)) - 8 - header
    assert {row["kind"] for row in rows} >= {"Conv2d", "BatchNorm2d", "Linear"}


def test_state_bytes_counts_shared_memory_once_and_knows_half_precision():
    weight = torch.zeros(10, dtype=torch.float16)
    assert state_bytes({"a": weight, "b": weight, "c": torch.zeros(3, dtype=torch.int8), "note": "x"}) == 23


def test_disk_bytes(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"12345")
    (tmp_path / "inner" / "b.bin").write_bytes(b"123")
    assert disk_bytes(tmp_path).value == 8
    assert disk_bytes(tmp_path / "a.bin").value == 5
    with pytest.raises(DataError, match="no file or folder"):
        disk_bytes(tmp_path / "absent")


def test_external_data_of_an_onnx_file_count(tmp_path):
    import onnx
    from measure_tiny import export

    whole = export(tiny_model(), tmp_path / "whole.onnx")
    loaded = onnx.load(whole)
    onnx.save(loaded, tmp_path / "split.onnx", save_as_external_data=True, location="split.data", size_threshold=0)
    (tmp_path / "other").write_bytes(b"not a part of it")
    both = (tmp_path / "split.onnx").stat().st_size + (tmp_path / "split.data").stat().st_size
    assert disk_bytes(tmp_path / "split.onnx").value == both


def test_a_model_in_quantization_aware_training_has_no_speed():
    from limbeck.quantization.quantization_aware import prepare_qat

    model = tiny_model()
    model = prepare_qat(model, Quantize(bits=8, activations=None).plan(model))
    assert simulated_modules(model) == ["0", "2"]
    with pytest.raises(UsageError, match="simulat"):
        latency_torch(model, TinyTask())
    assert model_bytes(model).value >= model_bytes(tiny_model()).value


def masked():
    model = tiny_model()
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def fake_quantized():
    from torch.ao.quantization import FakeQuantize

    return nn.Sequential(FakeQuantize(), *tiny_model())


@pytest.mark.parametrize("make", [masked, fake_quantized])
def test_simulations_get_the_dense_size_and_no_speed(make):
    model, task = make(), TinyTask()
    assert not reports_real_cost(model)
    assert simulated_modules(model) == ["0"]
    with pytest.raises(UsageError, match="simulat"):
        latency_torch(model, task)
    found = measure_model(model, task)
    assert "latency" not in found and "throughput" not in found
    assert found["parameters"].value == count_parameters(tiny_model())
    assert "dense" in found["bytes"].where
    if make is masked:
        assert found["bytes"].value == model_bytes(tiny_model()).value


def test_written_zeros_are_simply_dense():
    model = tiny_model()
    model[0].weight.data[::2] = 0
    assert reports_real_cost(model)
    assert model_bytes(model).value == model_bytes(tiny_model()).value


def test_what_a_model_says_of_itself_wins():
    model = tiny_model()
    model[0].simulates_cost = True
    assert simulated_modules(model) == ["0"]


def test_nothing_is_printed(capsys):
    layer_table(tiny_model())
    assert capsys.readouterr() == ("", "")
