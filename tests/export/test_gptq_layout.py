"""GPTQ folders, unpacked word by word as the layout says, and parsed by transformers."""

import json

import pytest
import torch
from format_models import IDS, model_of, quantized, quantized_modules
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.utils.quantization_config import GPTQConfig

from limbeck.errors import ExportError, UsageError
from limbeck.export.gptq import export_gptq, load_gptq

CASES = {
    "zero_points": ("llama", {"bits": 4, "weights": 32}, 4, 32, False),
    "symmetric": ("qwen2", {"bits": 4, "weights": 16, "symmetric": True}, 4, 16, True),
    "8_bits_per_channel": ("llama", {"bits": 8, "scale_type": "float16", "ignore": ("lm_head",)}, 8, -1, True),
    "2_bits": ("llama", {"bits": 2, "weights": 32}, 2, 32, False),
    "3_bits_in_4": ("gpt2", {"bits": 3, "weights": 32, "symmetric": True}, 4, 32, True),
    "ternary": ("llama", {"grid": "ternary", "weights": 32}, 2, 32, True),
}


def unpacked(tensors, path, bits, add_one):
    """(in, out) weights: code i of a column is bits [b i mod 32, ...) of word b i // 32."""
    qweight, qzeros, scales, index = (tensors[f"{path}.{n}"] for n in ("qweight", "qzeros", "scales", "g_idx"))
    per_word, mask = 32 // bits, 2**bits - 1
    rows, columns = len(index), scales.shape[1]
    weight = torch.empty(rows, columns)
    for i in range(rows):
        q = qweight[i // per_word].long() >> (bits * (i % per_word)) & mask
        group = int(index[i])
        word = qzeros[group].long().repeat_interleave(per_word)[:columns]
        z = (word >> (bits * (torch.arange(columns) % per_word)) & mask) + add_one
        weight[i] = scales[group].float() * (q - z)
    return weight


@pytest.mark.parametrize("case", CASES)
def test_the_layout_holds_the_stored_weights(tmp_path, case):
    name, settings, bits, group, symmetric = CASES[case]
    model = quantized(model_of(name), **settings)
    assert export_gptq(model, {"input_ids": IDS}, tmp_path / "m") < 1e-5
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (written["bits"], written["group_size"], written["sym"]) == (bits, group, symmetric)
    tensors = load_file(str(tmp_path / "m" / "model.safetensors"))
    zeros = [m.packed.zero_point for m in quantized_modules(model).values() if m.packed.zero_point is not None]
    second = any(bool((zero == 0).any()) for zero in zeros)
    assert written["checkpoint_format"] == ("gptq_v2" if second else "gptq")
    for path, module in quantized_modules(model).items():
        if path == "lm_head":  # transformers makes no GPTQ layer of a head
            assert torch.equal(tensors["lm_head.weight"], module.weight) and "lm_head.qweight" not in tensors
            continue
        assert torch.equal(unpacked(tensors, path, bits, 0 if second else 1).t(), module.weight), path
        assert tensors[f"{path}.g_idx"].dtype == tensors[f"{path}.qweight"].dtype == torch.int32
    config = AutoConfig.from_pretrained(tmp_path / "m")
    parsed = GPTQConfig.from_dict(config.quantization_config)
    assert (parsed.bits, parsed.group_size, parsed.sym, parsed.format) == (
        bits,
        group,
        symmetric,
        written["checkpoint_format"],
    )
    assert written["lm_head"] is False


def test_a_zero_point_of_0_needs_the_second_version(tmp_path):
    model = model_of("llama")
    layer = model.model.layers[0].mlp.up_proj
    layer.weight.data.abs_()
    model = quantized(model, bits=4, weights=32, only=("*.mlp.*",))
    export_gptq(model, {"input_ids": IDS}, tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert written["checkpoint_format"] == "gptq_v2"
    tensors = load_file(str(tmp_path / "m" / "model.safetensors"))
    for path, module in quantized_modules(model).items():
        assert torch.equal(unpacked(tensors, path, 4, 0).t(), module.weight), path
    assert int(model.model.layers[0].mlp.up_proj.packed.zero_point.max()) == 0


def test_a_head_of_another_width_is_float_and_the_model_that_of_the_codes(tmp_path):
    model = quantized(model_of("llama"), bits=4, weights=32, symmetric=True, ignore=("lm_head",))
    model = quantized(model, bits=8, scale_type="float16", only=("lm_head",))
    assert export_gptq(model, {"input_ids": IDS}, tmp_path / "m") < 1e-5
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (written["bits"], written["lm_head"], written["dynamic"]) == (4, False, {})
    with torch.no_grad():
        found, expected = load_gptq(model, tmp_path / "m")(input_ids=IDS).logits, model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    alone = quantized(model_of("llama"), bits=8, scale_type="float16", only=("lm_head",))
    with pytest.raises(UsageError, match="holds heads in float"):
        export_gptq(alone, {"input_ids": IDS}, tmp_path / "other")


def test_float_layers_are_named(tmp_path):
    model = quantized(model_of("llama"), bits=4, weights=32, symmetric=True, ignore=("*.mlp.down_proj", "lm_head"))
    export_gptq(model, {"input_ids": IDS}, tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert sorted(written["dynamic"]) == [rf"-:^model\.layers\.{i}\.mlp\.down_proj$" for i in (0, 1)]
    assert not written["lm_head"]


def test_refused(tmp_path):
    llama = model_of("llama")

    def refuse(model, match, error=ExportError):
        with pytest.raises(error, match=match):
            export_gptq(model, {"input_ids": IDS}, tmp_path / "m")
        assert not list(tmp_path.iterdir())

    refuse(torch.nn.Sequential(), "PreTrainedModel", UsageError)
    refuse(llama, "no quantized module", UsageError)
    refuse(quantized(llama, bits=8), "scale_type: float16")
    refuse(quantized(llama, bits=8, activations="dynamic"), "inputs are integers too")
    refuse(quantized(llama, grid="affine", bits=4, weights=32), "real offsets")
    refuse(quantized(llama, grid="nf4", weights=32), "no whole multiples")
    refuse(quantized(model_of("llama", intermediate_size=84), bits=4, weights=4), "fill words")
    refuse(quantized(quantized(llama, bits=4, weights=32, only=("*.mlp.*",)), bits=4, weights=16), "several group")


def test_damaged_tensors_are_refused(tmp_path):
    model = quantized(model_of("llama"), bits=4, weights=32)
    export_gptq(model, {"input_ids": IDS}, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(str(file))
    path = next(iter(quantized_modules(model)))
    for name, change in (("g_idx", lambda t: t + 99), ("qweight", lambda t: t[:-1]), ("scales", lambda t: t[:, :-1])):
        save_file({**tensors, f"{path}.{name}": change(tensors[f"{path}.{name}"]).contiguous()}, str(file))
        with pytest.raises(ExportError, match="cannot be read"):
            load_gptq(model, tmp_path / "m")
    save_file({n: t for n, t in tensors.items() if not n.endswith(".qzeros")}, str(file))
    with pytest.raises(ExportError, match="cannot be read"):
        load_gptq(model, tmp_path / "m")
