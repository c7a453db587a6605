"""Quantized tables of embeddings in every form: integers in ONNX graphs, the float rows they stand for elsewhere."""

import copy

import onnx
import pytest
import torch
from format_models import IDS, model_of, quantized
from torch import nn

from limbeck.export.compressed_tensors import export_compressed_tensors, load_compressed_tensors
from limbeck.export.gguf import export_gguf, load_gguf
from limbeck.export.gptq import export_gptq, load_gptq
from limbeck.export.onnx import export_onnx
from limbeck.plan import apply
from limbeck.quantization import QuantizeEmbeddings

LLAMA_TABLE = "model.embed_tokens"


def with_tables(model, **settings):
    model = copy.deepcopy(model)
    return apply(model, QuantizeEmbeddings(**settings).plan(model)).eval()


@pytest.fixture(scope="module")
def llama():
    return with_tables(quantized(model_of("llama"), bits=4, weights=32, symmetric=True))


@pytest.mark.parametrize(
    ("write", "read", "place"),
    [
        (export_compressed_tensors, load_compressed_tensors, "m"),
        (export_gptq, load_gptq, "m"),
        (export_gguf, load_gguf, "m.gguf"),
    ],
    ids=["compressed-tensors", "gptq", "gguf"],
)
def test_other_formats_hold_the_rows_they_stand_for(tmp_path, llama, write, read, place):
    assert write(llama, {"input_ids": IDS}, tmp_path / place) < 1e-4
    table = read(llama, tmp_path / place).get_submodule(LLAMA_TABLE)
    assert type(table) is nn.Embedding and torch.equal(table.weight, llama.get_submodule(LLAMA_TABLE).weight)


def test_a_model_with_nothing_but_quantized_tables_is_a_float_gguf(tmp_path):
    model = with_tables(model_of("llama"))
    assert export_gguf(model, {"input_ids": IDS}, tmp_path / "m.gguf") < 1e-5
    assert torch.equal(
        load_gguf(model, tmp_path / "m.gguf").get_submodule(LLAMA_TABLE).weight, model.get_submodule(LLAMA_TABLE).weight
    )


def gathered(path):
    """Types of the stored tensors that are looked up."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    return sorted(stored[n.input[0]] for n in graph.node if n.op_type == "Gather" and n.input[0] in stored)


@pytest.mark.parametrize(
    ("settings", "types"),
    [
        ({}, ["FLOAT", "INT8"]),
        ({"weights": "tensor"}, ["FLOAT", "INT8"]),
        ({"bits": 4, "weights": 16}, ["FLOAT", "UINT8", "UINT8"]),
        ({"grid": "nf4", "weights": 16}, ["FLOAT"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["weight_only", "int8"])
def test_onnx_looks_up_integers(tmp_path, settings, types, precision):
    llama = model_of("llama")
    model = with_tables(quantized(llama, bits=4, weights=32) if precision == "weight_only" else llama, **settings)
    how = {"accuracy_level": 1} if precision == "weight_only" else {}
    done = export_onnx(model, {"input_ids": IDS}, tmp_path / "m.onnx", precision=precision, **how)
    assert done.difference < 1e-5
    assert gathered(tmp_path / "m.onnx") == types
