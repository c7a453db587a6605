"""The transformers layout: pruned models that a config can express reload through Auto classes; others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, GPT2Config, LlamaConfig

from limbeck.errors import ExportError, UsageError
from limbeck.export.transformers_folder import export_transformers
from limbeck.models import transformer

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
IDS = torch.arange(12).reshape(2, 6)


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformer("AutoModel", BertConfig(max_position_embeddings=32, **SIZES).to_dict()).eval()


def cut_rows(linear: nn.Linear, keep: list[int]) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[keep])
    linear.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach()[keep])
    linear.out_features = len(keep)


def cut_columns(linear: nn.Linear, keep: list[int]) -> None:
    linear.weight = nn.Parameter(linear.weight.detach()[:, keep])
    linear.in_features = len(keep)


def reloads(model: nn.Module, folder, auto=AutoModel) -> None:
    with torch.no_grad():
        expected = model(input_ids=IDS)[0]
        found = auto.from_pretrained(folder).eval()(input_ids=IDS)[0]
    assert torch.equal(expected, found)
    assert (folder / "model.safetensors").is_file() and not list(folder.rglob("*.bin"))


def test_unchanged_and_with_tokenizer_files(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "vocab.txt").write_text("[PAD]\n")
    model = bert()
    assert export_transformers(model, {"input_ids": IDS}, tmp_path / "a", tokenizer=tmp_path / "from") == 0.0
    reloads(model, tmp_path / "a")
    assert (tmp_path / "a" / "vocab.txt").read_text() == "[PAD]\n"
    with pytest.raises(UsageError, match="not an empty folder"):
        export_transformers(model, None, tmp_path / "a")
    with pytest.raises(UsageError, match="no tokenizer files"):
        export_transformers(model, None, tmp_path / "b", tokenizer=tmp_path)
    with pytest.raises(UsageError, match="not a transformers"):
        export_transformers(nn.Linear(1, 1), None, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_the_tokenizer_of_a_task_comes_along(tmp_path):
    class Words:
        def save_pretrained(self, folder):
            (folder / "tokenizer.json").write_text("{}")

    class Texts:
        tokenizer = Words()

        def batches(self, *_, **__):
            return iter(())

        def example(self, rows):
            return {"input_ids": IDS[:rows]}

    export_transformers(bert(), Texts(), tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "{}"


def test_fewer_layers_and_narrower_feed_forward(tmp_path):
    model = bert()
    model.encoder.layer = nn.ModuleList([model.encoder.layer[0], model.encoder.layer[2]])
    for layer in model.encoder.layer:
        cut_rows(layer.intermediate.dense, list(range(1, 20)))
        cut_columns(layer.output.dense, list(range(1, 20)))
    before = model.config.num_hidden_layers
    assert export_transformers(model, {"input_ids": IDS}, tmp_path / "a") == 0.0
    reloads(model, tmp_path / "a")
    assert model.config.num_hidden_layers == before


def test_fewer_heads_where_the_config_has_a_head_width(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(num_key_value_heads=4, max_position_embeddings=32, **SIZES)
    model = transformer("AutoModelForCausalLM", config.to_dict()).eval()
    for layer in model.model.layers:
        attention, kept = layer.self_attn, list(range(12))
        for name in ("q_proj", "k_proj", "v_proj"):
            cut_rows(getattr(attention, name), kept)
        cut_columns(attention.o_proj, kept)
    assert export_transformers(model, {"input_ids": IDS}, tmp_path / "a") == 0.0
    reloads(model, tmp_path / "a", AutoModelForCausalLM)


def test_tied_language_model(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(n_embd=24, n_layer=2, n_head=4, vocab_size=50, n_positions=32)
    model = transformer("AutoModelForCausalLM", config.to_dict()).eval()
    model.transformer.h = nn.ModuleList([model.transformer.h[1]])
    model.transformer.h[0].attn.layer_idx = 0
    assert export_transformers(model, {"input_ids": IDS}, tmp_path / "a") == 0.0
    reloads(model, tmp_path / "a", AutoModelForCausalLM)


def test_widths_that_differ_between_layers_are_refused(tmp_path):
    model = bert()
    layer = model.encoder.layer[1]
    cut_rows(layer.intermediate.dense, list(range(20)))
    cut_columns(layer.output.dense, list(range(20)))
    with pytest.raises(ExportError, match=r"encoder.layer.1.intermediate.dense.bias, .* differ"):
        export_transformers(model, None, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_plan_in_the_way_is_named(tmp_path):
    from limbeck.plan import apply
    from limbeck.quantization import Quantize

    model = bert()
    plan = Quantize(activations=None).plan(model)
    with pytest.raises(ExportError, match=r"plan 1 of 1, 'quantize', is in the way"):
        export_transformers(apply(model, plan), None, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_change_that_shapes_do_not_show_is_found_by_the_outputs(tmp_path):
    model = bert()
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.ReLU()
    with pytest.raises(ExportError, match="other outputs"):
        export_transformers(model, None, tmp_path / "a")
    assert not list(tmp_path.iterdir())
