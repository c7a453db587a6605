"""The front door of exports: names and settings, quality measured again on what was written, and what lost quality put aside."""

import json
import sys
from pathlib import Path

import datasets
import pytest
import torch

from limbeck import artifact
from limbeck.errors import ExportError, UsageError
from limbeck.exports import export_folders, export_model, form_of, refuse_lost_quality
from limbeck.inspection import export_path
from limbeck.models import transformer
from limbeck.plan import apply
from limbeck.quantization import Quantize
from limbeck.recipe import Measure
from limbeck.tasks import LanguageModelling

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of a folder: one text for each split."""
    at = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", at / "cache")
        for split in ("train", "validation", "test"):
            rows = {"text": ["to be or not to be that is the question " * 4]}
            datasets.Dataset.from_dict(rows).to_parquet(at / "words" / f"{split}.parquet")
        yield at / "words"


@pytest.fixture(scope="module")
def task(folder):
    return LanguageModelling(str(folder), length=8)


@pytest.fixture(scope="module")
def model(task):
    torch.manual_seed(0)
    made = transformer("AutoModelForCausalLM", {**CONFIG, "vocab_size": 32}).eval()
    assert task.vocabulary_size <= 32
    return apply(made, Quantize(bits=4, weights=32, activations=None).plan(made))


def test_names_and_settings():
    assert form_of("gguf") == ("gguf", {})
    assert form_of({"form": "gguf", "requantize": "q8_0"}) == ("gguf", {"requantize": "q8_0"})
    for value, match in (
        ("gguff", "gguf"),
        ({"form": "onnx", "accuracy_level": 4}, "has input_ranges, not 'accuracy_level'"),
        ({"form": "onnx_weight_only", "requantize": "q8_0"}, "accuracy_level, not 'requantize'"),
        ({"form": "transformers", "requantize": "q8_0"}, "no settings, not 'requantize'"),
        ({"requantize": "q8_0"}, "None"),
    ):
        with pytest.raises(UsageError, match=match):
            form_of(value)


def test_quality_is_measured_again_on_what_was_written(tmp_path, model, task):
    pytest.importorskip("compressed_tensors"), pytest.importorskip("gguf")
    made = export_folders(model, task, tmp_path, ["onnx", "compressed_tensors", "gptq", {"form": "gguf"}], Measure())
    assert [one.path.name for one in made] == ["compressed-tensors", "gptq", "model.gguf"]
    expected = task.evaluate(lambda batch: model(input_ids=batch["input_ids"]).logits, "validation")
    for one in made:
        row = json.loads(json.dumps(one.to_json()))
        assert row["quality"]["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)
        assert row["bytes"] > 1000 and row["difference"] < 1e-4
    assert (tmp_path / "gptq" / "tokenizer.json").is_file()


def test_what_lost_quality_is_put_aside(tmp_path, model, task, monkeypatch):
    pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    export_model(model, task, path, "gguf")

    def worse(model, path):
        from limbeck.export.gguf import load_gguf

        made = load_gguf(model, path)
        made.lm_head.weight.data.mul_(40)
        return made

    monkeypatch.setitem(sys.modules["limbeck.exports"].READERS, "gguf", worse)
    with pytest.raises(ExportError, match=r"perplexity on validation was .* as gguf"):
        refuse_lost_quality(model, task, path, Measure(), "gguf")
    assert [one.name for one in tmp_path.iterdir()] == ["m.gguf.rejected"]


def test_an_artifact_is_exported_with_settings(tmp_path, model, task, folder):
    pytest.importorskip("gguf")
    recipe = f"name: a\ntask: {{class: LanguageModelling, dataset: {folder}, length: 8}}\n"
    artifact.save(model, tmp_path / "artifact", recipe=recipe)
    out = tmp_path / "m.gguf"
    done = export_path(tmp_path / "artifact", out, "gguf", "{requantize: q8_0, tokenizer: false}", trust=())
    assert done["bytes"] == Path(done["file"]).stat().st_size and done["quality"]["perplexity"] > 1
    for settings, match in (("{x", "YAML"), ("3", "mapping"), ("{opset: 3}", "opset")):
        with pytest.raises(UsageError, match=match):
            export_path(tmp_path / "artifact", out, "gguf", settings, trust=())
