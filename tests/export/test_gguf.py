"""GGUF: blocks that decode to exactly the stored weights, and files that gguf and transformers read back."""

import numpy as np
import pytest
import torch
from format_models import IDS, model_of, quantized, quantized_modules
from torch import nn
from transformers import AutoModelForCausalLM

from limbeck.datasets.tokenize import train_tokenizer
from limbeck.errors import ExportError, UsageError
from limbeck.export.gguf import export_gguf, load_gguf, row_order
from limbeck.export.gguf_blocks import blocks_of
from limbeck.export.integers import integer_weight

gguf = pytest.importorskip("gguf")
# settings of a layer of 512 inputs, and the type that holds it
BLOCKS = [
    ({"bits": 8, "weights": 32}, "Q8_0"),
    ({"bits": 8, "weights": "channel", "scale_type": "float16"}, "Q8_0"),
    ({"bits": 6, "weights": 64, "symmetric": True}, "Q8_0"),
    ({"bits": 6, "weights": 32}, "Q8_0"),
    ({"bits": 5, "weights": 32, "symmetric": True}, "Q5_0"),
    ({"bits": 4, "weights": 32}, "Q5_0"),
    ({"bits": 4, "weights": 256}, "Q4_K"),
    ({"bits": 4, "weights": "channel", "symmetric": False, "scale_type": "float16"}, "Q4_K"),
    ({"bits": 4, "weights": 64, "symmetric": True}, "Q4_0"),
    ({"bits": 3, "weights": 32}, "Q4_0"),
    ({"bits": 2, "weights": 96}, "Q4_0"),
    ({"grid": "ternary", "weights": 32}, "Q4_0"),
    ({"grid": "affine", "bits": 4, "weights": 32, "scale_type": "float16"}, "Q4_1"),
    ({"grid": "affine", "bits": 2, "weights": 64}, "Q4_1"),
]


@pytest.mark.parametrize("settings, kind", BLOCKS, ids=[f"{kind}-{s}" for s, kind in BLOCKS])
def test_blocks_decode_to_the_stored_weights(settings, kind):
    torch.manual_seed(3)
    model = quantized(nn.Sequential(nn.Linear(512, 6)), **settings)
    found, data = blocks_of(integer_weight("0", model[0]))
    assert found == kind and data.dtype == np.uint8
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    assert torch.equal(torch.from_numpy(decoded), model[0].weight)


def test_what_no_block_holds():
    def refuse(match, inputs=512, **settings):
        model = quantized(nn.Sequential(nn.Linear(inputs, 6)), **settings)
        with pytest.raises(ExportError, match=match):
            blocks_of(integer_weight("0", model[0]))

    refuse("no whole blocks", bits=4, weights=16)
    refuse("no whole blocks", inputs=48, bits=8)
    refuse("asymmetric weights of 8 bits", bits=8, weights=32, symmetric=False)
    refuse("at most 4 bits", grid="affine", bits=5, weights=32)
    refuse("scale_type: float16", bits=8)
    refuse("no whole multiples", grid="nf4", weights=32)


def test_rows_of_rotary_heads():
    """(heads, 2, pairs) -> (heads, pairs, 2), written out."""
    assert row_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    order = row_order(24, 2)
    assert order[:4].tolist() == [0, 6, 1, 7] and torch.equal(order[order.argsort()], torch.arange(24))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_transformers_reads_the_same_weights(tmp_path, name):
    model = quantized(model_of(name, attention_bias=name == "llama"), bits=4, weights=32)
    assert export_gguf(model, {"input_ids": IDS}, tmp_path / "m.gguf") < 1e-5
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf").eval()
    for path, module in quantized_modules(model).items():
        assert torch.equal(again.get_submodule(path).weight, module.weight), path
    with torch.no_grad():
        expected, found = model(input_ids=IDS).logits, again(input_ids=IDS).logits
    if name != "llama":  # of llama transformers reads no attention biases
        assert torch.allclose(expected, found, atol=1e-4)


def test_requantized_and_float(tmp_path):
    model = model_of("llama")
    nf4 = quantized(model, grid="nf4", weights=32)
    with pytest.raises(ExportError, match="no whole multiples"):
        export_gguf(nf4, {"input_ids": IDS}, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    assert 0 < export_gguf(nf4, {"input_ids": IDS}, tmp_path / "m.gguf", requantize="q8_0") < 0.05
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(str(tmp_path / "m.gguf")).tensors}
    assert types["blk.0.attn_q.weight"] == "Q8_0" and types["token_embd.weight"] == types["output_norm.weight"] == "F32"
    assert export_gguf(model, {"input_ids": IDS}, tmp_path / "f.gguf") < 1e-6
    again = load_gguf(model, tmp_path / "f.gguf").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def field(reader, name):
    return reader.get_field(name).contents()


def test_numbers_and_tokens(tmp_path):
    model = quantized(model_of("llama", vocab_size=320, rms_norm_eps=1e-5), bits=8, weights=32)
    tokenizer = train_tokenizer(["to be or not to be, that is the question"] * 3, "bpe", 300)
    export_gguf(model, {"input_ids": IDS}, tmp_path / "m.gguf", tokenizer=tokenizer)
    reader = gguf.GGUFReader(str(tmp_path / "m.gguf"))
    expected = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.block_count": 2,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 320,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
    }
    assert {name: field(reader, name) for name in expected} == expected
    assert field(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    tokens, kinds = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert kinds[0] == 3 and kinds[1] == 1 and kinds[-1] == 5 and len(tokens) == len(kinds) == 320
    assert "t o" in field(reader, "tokenizer.ggml.merges")
    characters = train_tokenizer(["abc \n\u00e9"], "characters")
    export_gguf(model, {"input_ids": IDS}, tmp_path / "c.gguf", tokenizer=characters)
    reader = gguf.GGUFReader(str(tmp_path / "c.gguf"))
    assert field(reader, "tokenizer.ggml.model") == "rwkv"
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert tokens[characters.convert_tokens_to_ids("\u00e9")] == r"\xc3\xa9"
    export_gguf(model, {"input_ids": IDS}, tmp_path / "n.gguf", tokenizer=False)
    assert field(gguf.GGUFReader(str(tmp_path / "n.gguf")), "tokenizer.ggml.model") == "none"


def test_refused(tmp_path):
    llama = model_of("llama")

    def refuse(model, match, error=ExportError, **settings):
        with pytest.raises(error, match=match):
            export_gguf(model, {"input_ids": IDS}, tmp_path / "m.gguf", **settings)
        assert not list(tmp_path.iterdir())

    refuse(model_of("gpt2"), "no GGUF form", UsageError)
    refuse(nn.Sequential(), "no GGUF form", UsageError)
    refuse(llama, "requantize='q8'", UsageError, requantize="q8")
    refuse(quantized(llama, bits=8, activations="dynamic"), "inputs are integers too")
    refuse(quantized(llama, bits=8), "scale_type: float16")
    refuse(model_of("llama", hidden_act="gelu"), "activation 'gelu'")
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    refuse(model_of("llama", rope_parameters=scaled), "rotary positions")
    refuse(llama, "the tokenizer has", tokenizer=train_tokenizer(["abc"], "bpe", 300))
    framed = train_tokenizer(["abc"], "characters", framed=True)
    refuse(llama, "this tokenizer has no GGUF form", tokenizer=framed)
    refuse(model_of("llama", intermediate_size=72), "rows of 72", requantize="q4_0")


def test_damaged_files_are_refused(tmp_path):
    model = quantized(model_of("llama"), bits=4, weights=32)
    export_gguf(model, {"input_ids": IDS}, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    for damaged in (b"", data[:100], data[:-500], b"GGUX" + data[4:]):
        (tmp_path / "d.gguf").write_bytes(damaged)
        with pytest.raises(ExportError, match="cannot be read"):
            load_gguf(model, tmp_path / "d.gguf")
    with pytest.raises(ExportError, match="cannot be read"):
        load_gguf(model_of("llama", num_hidden_layers=3), tmp_path / "m.gguf")
    with pytest.raises(ExportError, match="other"):
        load_gguf(model_of("llama", intermediate_size=64), tmp_path / "m.gguf")
    with pytest.raises(ExportError, match="other tensors"):
        load_gguf(model_of("llama", num_hidden_layers=1), tmp_path / "m.gguf")
