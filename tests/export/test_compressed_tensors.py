"""compressed-tensors folders: transformers loads them, with exactly the weights that the codes stand for."""

import json

import pytest
import torch
from format_models import IDS, model_of, quantized, quantized_modules
from safetensors.torch import load_file

from limbeck.errors import ExportError, UsageError
from limbeck.export.compressed_tensors import export_compressed_tensors, load_compressed_tensors
from limbeck.quantization import plain_kernels

pytest.importorskip("compressed_tensors")
CASES = {
    "symmetric_groups": ("llama", {"bits": 4, "weights": 32, "symmetric": True}, "pack-quantized"),
    "zero_points": ("llama", {"bits": 4, "weights": 32}, "pack-quantized"),
    "8_bits_per_channel": ("bert", {"bits": 8, "compute": "bfloat16"}, "pack-quantized"),
    "3_bits_in_4": ("qwen2", {"bits": 3, "weights": 16, "symmetric": True}, "pack-quantized"),
    "ternary": ("qwen2", {"grid": "ternary", "weights": "tensor"}, "pack-quantized"),
    "static_inputs": ("bert", {"bits": 8, "activations": "static"}, "int-quantized"),
    "dynamic_inputs": ("llama", {"bits": 8, "activations": "dynamic"}, "int-quantized"),
}


@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_the_same_weights(tmp_path, case):
    name, settings, form = CASES[case]
    model = quantized(model_of(name), **settings)
    difference = export_compressed_tensors(model, {"input_ids": IDS}, tmp_path / "m")
    assert difference < (0.02 if settings.get("activations") == "dynamic" else 1e-5)
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert written["format"] == form and written["quant_method"] == "compressed-tensors"
    again = load_compressed_tensors(model, tmp_path / "m")
    with torch.no_grad(), plain_kernels():
        expected, found = model(input_ids=IDS).logits.float(), again(input_ids=IDS).logits
    assert (expected - found).abs().max() <= (1e-2 if settings.get("compute") else 0.02) * expected.abs().max()
    for path, module in quantized_modules(model).items():
        assert torch.equal(again.get_submodule(path).weight.float(), module.weight), path
    names = set(load_file(str(tmp_path / "m" / "model.safetensors")))
    assert not any(path + ".weight" in names for path in quantized_modules(model)) or form == "int-quantized"
    assert ("lm_head.weight" in names) == (name == "llama" and form == "int-quantized")


def test_several_widths_and_float_layers(tmp_path):
    model = quantized(model_of("llama"), bits=8, only=("*.mlp.*",))
    model = quantized(model, bits=4, weights=32, symmetric=True, only=("*.self_attn.*",))
    export_compressed_tensors(model, {"input_ids": IDS}, tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    groups = list(written["config_groups"].values())
    assert [group["weights"]["num_bits"] for group in groups] == [4, 8] and written["ignore"] == ["lm_head"]
    assert groups[0]["targets"][0] == "model.layers.0.self_attn.q_proj"
    again = load_compressed_tensors(model, tmp_path / "m")
    again(input_ids=IDS)
    assert all(torch.equal(again.get_submodule(p).weight, m.weight) for p, m in quantized_modules(model).items())


def test_refused(tmp_path):
    example = {"input_ids": IDS}

    def refuse(model, match, error=ExportError):
        with pytest.raises(error, match=match):
            export_compressed_tensors(model, example, tmp_path / "m")
        assert not list(tmp_path.iterdir())

    llama = model_of("llama")
    refuse(torch.nn.Sequential(), "PreTrainedModel", UsageError)
    refuse(llama, "no quantized module", UsageError)
    refuse(quantized(model_of("gpt2"), bits=8), "Conv1D")
    refuse(quantized(llama, grid="nf4", weights=32), "no whole multiples")
    refuse(quantized(llama, grid="affine", bits=4, weights=32), "real offsets")
    refuse(quantized(llama, bits=4, weights=48), "do not divide")
    refuse(quantized(llama, bits=4, weights="tensor", symmetric=False), "per output or group")
    refuse(quantized(llama, bits=8, activations="dynamic", activation_bits=4), "inputs have 4 bits")
    mixed = quantized(quantized(llama, bits=4, weights=32, only=("*.mlp.*",)), bits=8, only=("*.self_attn.*",))
    refuse(mixed, "several widths")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "file").write_text("")
    with pytest.raises(UsageError, match="not an empty folder"):
        export_compressed_tensors(llama, example, tmp_path / "m")


def test_a_damaged_folder_is_refused(tmp_path):
    model = quantized(model_of("llama"), bits=8)
    export_compressed_tensors(model, {"input_ids": IDS}, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ExportError, match="cannot load"):
        load_compressed_tensors(model, tmp_path / "m")
