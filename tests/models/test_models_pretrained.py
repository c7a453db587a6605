import json

import pytest
import torch

from limbeck.build import Factory, build, lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import load_pretrained, transformer
from limbeck.signals import call, first_tensor

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 40}
CASES = {
    "bert": ("AutoModelForSequenceClassification", {"model_type": "bert", **SIZES, "num_labels": 4}),
    "gpt2": (
        "AutoModelForCausalLM",
        {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 40, "n_positions": 16}
        | {"bos_token_id": 0, "eos_token_id": 0},
    ),
    "vit": (
        "AutoModelForImageClassification",
        {"model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 3, **SIZES},
    ),
}


def batch(kind):
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8)}
    return {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}


@pytest.mark.parametrize("kind", CASES)
def test_folder_to_model_to_factory_to_the_same_outputs(kind, tmp_path):
    torch.manual_seed(0)
    auto_class, config = CASES[kind]
    made = transformer(auto_class, config).eval()
    made.save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path), auto_class)
    assert not loaded.training and next(loaded.parameters()).dtype == torch.float32
    factory = Factory.from_json(json.loads(json.dumps(lineage(loaded).factory.to_json())))
    again = build(factory).eval()
    again.load_state_dict(loaded.state_dict(), strict=True)
    inputs = batch(kind)
    expected = first_tensor(call(made, inputs))
    assert torch.equal(first_tensor(call(loaded, inputs)), expected)
    assert torch.equal(first_tensor(call(again, inputs)), expected)
    assert str(tmp_path) not in json.dumps(factory.to_json())


def test_overrides_change_the_config(tmp_path):
    auto_class, config = CASES["bert"]
    transformer(auto_class, config).save_pretrained(tmp_path)
    made = load_pretrained(str(tmp_path), auto_class, num_labels=4, hidden_dropout_prob=0.3)
    assert made.config.hidden_dropout_prob == 0.3
    assert build(lineage(made).factory).config.hidden_dropout_prob == 0.3


def test_the_number_of_classes_comes_back():
    model = transformer(*CASES["bert"])
    assert build(lineage(model).factory).classifier.out_features == 4
    # defaults are spelled out, for another transformers may have others
    assert lineage(model).factory.arguments["config"]["layer_norm_eps"] == 1e-12


@pytest.mark.parametrize(
    "auto_class, config, message",
    [
        (
            "AutoModelForSequenceClasification",
            {"model_type": "bert"},
            "Did you mean 'AutoModelForSequenceClassification'",
        ),
        ("PreTrainedModel", {"model_type": "bert"}, "no auto_class"),
        ("AutoModel", {"model_type": "brt"}, "no model_type 'brt'.*'bert'"),
        ("AutoModel", {}, "no model_type None"),
        (
            "AutoModel",
            {"model_type": "mine", "auto_map": {"AutoModel": "x.Y"}},
            "code from the hub, which is never run",
        ),
        ("AutoModel", "bert", "must be a mapping"),
        ("AutoModelForImageClassification", {"model_type": "bert"}, "cannot be built from this 'bert' config"),
        ("AutoModel", {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, "cannot be built"),
    ],
)
def test_bad_configs(auto_class, config, message):
    with pytest.raises(UsageError, match=message):
        transformer(auto_class, config)


def test_only_safetensors_are_read(tmp_path):
    auto_class, config = CASES["bert"]
    model = transformer(auto_class, config)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_pretrained(str(tmp_path), auto_class)


def test_a_damaged_or_empty_folder(tmp_path):
    auto_class, config = CASES["bert"]
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_pretrained(str(tmp_path), auto_class)
    transformer(auto_class, config).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_pretrained(str(tmp_path), auto_class)


def test_code_in_the_folder_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}})
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ArtifactError):
        load_pretrained(str(tmp_path), "AutoModel")
    assert not (tmp_path / "ran").exists()
