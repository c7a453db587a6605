"""Models read from their files block by block, against the same models held whole."""

import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from limbeck.errors import ArtifactError, UsageError
from limbeck.models import gpt
from limbeck.quantization import GPTQ, HalfQuadratic, IntegerGrid, PerGroup, Quantizer, Shards, empty, round_shards
from limbeck.quantization import shards as module
from limbeck.quantization.rounding import round_weights


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=40,
    )
    return LlamaForCausalLM(config)


MODELS = {"gpt": lambda: gpt(40, 16, 4, 32, 4), "llama": llama}


def written(folder, name):
    """A model in three files and an index, as transformers writes large ones; tied weights once."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    tensors = {k: p.detach().clone() for k, p in model.named_parameters()}
    files = {k: f"model-{i % 3}.safetensors" for i, k in enumerate(tensors)}
    for file in set(files.values()):
        save_file({k: v for k, v in tensors.items() if files[k] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return model


def setting(model):
    ids = torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    batches = [{"input_ids": ids[:4], "attention_mask": mask[:4]}, {"input_ids": ids[4:], "attention_mask": mask[4:]}]
    quantizer = Quantizer(IntegerGrid(3, False, False), PerGroup(16))
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    paths = [path for path, m in model.named_modules() if isinstance(m, nn.Linear) and id(m.weight) not in tied]
    return batches, dict.fromkeys(paths, quantizer)


@pytest.mark.parametrize("name", MODELS)
def test_read_in_pieces_or_whole_the_result_is_the_same_and_one_block_is_in_memory(name, tmp_path, monkeypatch):
    model = written(tmp_path, name)
    batches, quantizers = setting(model)
    expected, _ = round_weights(model, batches, quantizers, GPTQ())
    hollow = empty(MODELS[name])
    assert all(p.is_meta for p in hollow.parameters())
    alive, most, original = weakref.WeakSet(), [0], module.fill

    def counted(target, prefix, shards, skip=()):
        if prefix:
            gc.collect()
            alive.add(target)
            most[0] = max(most[0], len(alive))
        original(target, prefix, shards, skip)

    monkeypatch.setattr(module, "fill", counted)
    found = dict(round_shards(hollow, Shards(tmp_path), batches, quantizers, GPTQ()))
    assert set(found) == set(expected)
    for path, packed in found.items():
        assert all(torch.equal(value, packed.tensors[key]) for key, value in expected[path].tensors.items()), path
    assert most[0] == 1
    inside = [n for n, p in hollow.named_parameters() if not p.is_meta and (".layers." in n or n.startswith("blocks."))]
    assert not inside and not any("forward" in m.__dict__ for m in hollow.modules())


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        Shards(tmp_path)
    model = written(tmp_path, "gpt")
    batches, quantizers = setting(model)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {k: v for k, v in good["weight_map"].items() if "blocks.2" not in k}}))
    with pytest.raises(ArtifactError, match=r"no tensor 'blocks\.2"):
        list(round_shards(empty(MODELS["gpt"]), Shards(tmp_path), batches, quantizers, GPTQ()))
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ArtifactError, match="not in the folder"):
        Shards(tmp_path)
    index.write_text(json.dumps(good))
    (tmp_path / "model-1.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="cannot be read"):
        list(round_shards(empty(MODELS["gpt"]), Shards(tmp_path), batches, quantizers, GPTQ()))


def test_other_shapes_and_methods_without_data_are_refused(tmp_path):
    model = written(tmp_path, "gpt")
    batches, quantizers = setting(model)
    with pytest.raises(ArtifactError, match="has the shape"):
        list(round_shards(empty(lambda: gpt(41, 16, 4, 32, 4)), Shards(tmp_path), batches, quantizers, GPTQ()))
    with pytest.raises(UsageError, match="reads no data"):
        list(round_shards(empty(MODELS["gpt"]), Shards(tmp_path), batches, quantizers, HalfQuadratic()))
