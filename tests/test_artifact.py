"""Artifacts: saved and loaded models give the same outputs bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from artifact_models import HERE, PIXELS, TOKENS, Noise, apply_widen, conv, make_bert, resign, same, tied
from torch import nn

from limbeck import artifact
from limbeck.artifact import load, save
from limbeck.build import Factory, lineage, with_lineage
from limbeck.errors import ArtifactError, UsageError
from limbeck.plan import KINDS, Plan


def test_tied_weights_stay_tied_and_constants_come_back(tmp_path):
    loaded = same(tied(), tmp_path / "a", TOKENS)
    assert loaded.head.weight is loaded.embedding.weight
    architecture = json.loads((tmp_path / "a" / "architecture.json").read_text())
    assert architecture["tensors"]["shared"] == {"head.weight": "embedding.weight"}
    assert architecture["tensors"]["constants"] == ["noise"]  # `angles` is made again by the factory


def test_a_changed_constant_is_refused_even_when_the_manifest_fits(tmp_path):
    folder = save(tied(), tmp_path / "a")
    path = folder / "model.safetensors"
    tensors = artifact.safetensors.torch.load_file(path)
    artifact.safetensors.torch.save_file({**tensors, "noise": tensors["noise"] + 1}, path)
    resign(folder)
    with pytest.raises(ArtifactError, match="does not hold the weights"):
        load(folder, trust=[HERE])


@pytest.mark.parametrize("seed", [0, 7])
def test_numbers_that_a_constructor_draws_are_kept_whatever_the_seed(tmp_path, seed):
    torch.manual_seed(seed)
    model = with_lineage(Noise(), Factory(f"{HERE}:make_noise")).eval()
    torch.manual_seed(seed)
    save(model, tmp_path / "a")
    torch.manual_seed(seed + 1)
    assert torch.equal(load(tmp_path / "a", trust=[HERE])(torch.ones(4)), model(torch.ones(4)))


def test_untied_copy_of_a_tied_architecture_is_not_tied_again(tmp_path):
    model = tied()
    model.head.weight = nn.Parameter(model.embedding.weight.detach() + 1)
    loaded = same(model, tmp_path / "a", TOKENS)
    assert loaded.head.weight is not loaded.embedding.weight


def test_convolutions_in_every_memory_order(tmp_path):
    same(conv(), tmp_path / "a", PIXELS)
    model = conv().to(memory_format=torch.channels_last)
    loaded = same(model, tmp_path / "b", PIXELS)
    assert [p.stride() for p in loaded.parameters()] == [p.stride() for p in model.parameters()]


def test_a_model_cast_after_it_was_built(tmp_path):
    loaded = same(conv().bfloat16(), tmp_path / "a", PIXELS.bfloat16())
    assert loaded.head.weight.dtype == torch.bfloat16
    same(tied().double(), tmp_path / "b", TOKENS)


def test_views_of_one_storage_are_saved_apart(tmp_path):
    model = conv()
    both = torch.randn(8, 8)
    model.head.weight = nn.Parameter(both[:4])
    model.register_parameter("unused", None)
    model.body[0].bias = nn.Parameter(both[2])
    same(model, tmp_path / "a", PIXELS)


def test_transformers_model_by_an_own_factory(tmp_path):
    torch.manual_seed(0)
    model = make_bert(8).eval()
    save(model, tmp_path / "a", factory=Factory(f"{HERE}:make_bert", {"hidden": 8}))
    loaded = load(tmp_path / "a", trust=[HERE])
    assert torch.equal(model(TOKENS).last_hidden_state, loaded(TOKENS).last_hidden_state)


def test_plans_are_replayed_before_the_weights_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "widen", (1, f"{HERE}:apply_widen"))
    model = conv()
    plan = Plan("widen", {"classes": 9})
    apply_widen(model, plan)
    same(with_lineage(model, lineage(model).factory, [plan]), tmp_path / "a", PIXELS)
    monkeypatch.delitem(KINDS, "widen")
    with pytest.raises(ArtifactError, match="unknown kind of plan 'widen'"):
        load(tmp_path / "a", trust=[HERE])


def test_a_lineage_that_does_not_describe_the_model_is_refused_at_saving(tmp_path):
    model = conv()
    model.head = nn.Linear(8, 5)
    with pytest.raises(ArtifactError, match=r"'head.weight' is \(5, 8\).*has \(4, 8\)"):
        save(model, tmp_path / "a")
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match=r"unexpected extra.bias, extra.weight"):
        save(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_model_without_lineage_is_told_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=r"factory=Factory\('mypkg.models:make'.*trust=\['mypkg'\]"):
        save(nn.Linear(2, 2), tmp_path / "a")


def test_untrusted_code_is_not_imported(tmp_path):
    save(conv(), tmp_path / "a")
    with pytest.raises(ArtifactError, match="trust="):
        load(tmp_path / "a")
    assert artifact.info(tmp_path / "a")["trust"] == HERE
    load(tmp_path / "a", trust=HERE)


def test_loading_leaves_the_random_state_alone(tmp_path):
    save(tied(), tmp_path / "a")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tmp_path / "a", trust=[HERE])
    assert torch.equal(torch.rand(3), expected)
    model = tied()
    torch.manual_seed(5)
    save(model, tmp_path / "b")
    assert torch.equal(torch.rand(3), expected)
