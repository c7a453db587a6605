"""A folder quantized without ever being whole in memory, against the same model loaded first."""

import json

import pytest
import torch
from safetensors.torch import save_file

import limbeck as lb
from limbeck.build import lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import load_pretrained, transformer
from limbeck.quantization import DecoupleQ, Quantize, quantize_folder

pytest.importorskip("transformers")

SMALL = {"bits": 4, "weights": 16, "activations": None, "examples": 8, "batch_size": 4}
CONFIGS = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 40, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32},
}


class Texts:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        for seed in range(limit // batch_size):
            ids = torch.randint(0, 40, (batch_size, 12), generator=torch.Generator().manual_seed(seed))
            yield {"input_ids": ids}


def written(folder, kind):
    """As the hub has large models: several files and an index, in bfloat16."""
    torch.manual_seed(0)
    model = transformer("AutoModelForCausalLM", CONFIGS[kind]).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(
    "settings",
    [
        {"rounding": "gptq"},
        {"rounding": "hqq"},
        {"activations": "dynamic", "weights": "channel"},
        {"grid": "affine", "rounding": DecoupleQ(epochs=1, learning_rate=1e-3)},
    ],
    ids=["gptq", "hqq", "nearest", "decoupleq"],
)
def test_the_model_is_that_of_the_whole_and_reloads(kind, settings, tmp_path):
    folder, quantize = written(tmp_path / "float", kind), Quantize(**{**SMALL, **settings})
    whole = load_pretrained(str(folder), "AutoModelForCausalLM")
    whole = lb.apply(whole, quantize.plan(whole, Texts()))
    made = quantize_folder(folder, quantize, Texts())
    assert list(made.state_dict()) == list(whole.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), whole.state_dict().values()))
    assert lineage(made) == lineage(whole) and not made.training
    lb.save(made, tmp_path / "small")
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        assert torch.equal(lb.load(tmp_path / "small")(ids).logits, whole(ids).logits)


def test_what_cannot_be_is_refused(tmp_path):
    folder = written(tmp_path / "float", "llama")
    with pytest.raises(UsageError, match="static activations need the whole model"):
        quantize_folder(folder, Quantize())
    with pytest.raises(UsageError, match="GPTQ reads a task's train split"):
        quantize_folder(folder, Quantize(**SMALL, rounding="gptq"))
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        quantize_folder(tmp_path, Quantize(**SMALL))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"no readable config\.json"):
        quantize_folder(folder, Quantize(**SMALL))
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    (folder / "model.safetensors.index.json").unlink()
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match="has no tensor"):
        quantize_folder(folder, Quantize(**SMALL))
