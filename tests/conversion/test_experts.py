"""Experts as linear layers: the same numbers as transformers' own, and within reach of what works on linear layers."""

import copy

import pytest
import torch
from torch import nn

from limbeck.conversion import SplitExperts
from limbeck.conversion.experts import LinearExperts
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import transformer
from limbeck.plan import Plan, apply
from limbeck.quantization import Quantize

pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "layer_types": ["full_attention"] * 2},
}


class Texts:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        yield {"input_ids": torch.randint(0, 50, (batch_size, 16), generator=torch.Generator().manual_seed(0))}


def mixture(kind):
    torch.manual_seed(0)
    model = transformer("AutoModelForCausalLM", {"model_type": kind, **SIZES, **MIXTURES[kind]}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_numbers_and_gradients_stay(kind):
    model, ids = mixture(kind), torch.randint(0, 50, (3, 16))
    split = apply(copy.deepcopy(model), SplitExperts().plan(model))
    found = [m for m in split.modules() if isinstance(m, LinearExperts)]
    assert len(found) == 2 and all(len(m.experts) == 4 for m in found)
    first, second = model(ids).logits, split(ids).logits
    torch.testing.assert_close(second, first, atol=2e-6 * float(first.detach().abs().max()), rtol=1e-5)
    first.square().sum().backward()
    second.square().sum().backward()
    whole = next(m for m in model.modules() if hasattr(m, "down_proj") and m.down_proj.dim() == 3).down_proj.grad
    parts = torch.stack([expert["down"].weight.grad for expert in found[0].experts])
    parts = parts.transpose(1, 2) if parts.shape != whole.shape or kind == "gpt_oss" else parts
    torch.testing.assert_close(parts, whole, atol=2e-5 * float(whole.abs().max()), rtol=1e-4)
    assert sum(p.numel() for p in split.parameters()) == sum(p.numel() for p in model.parameters())


def test_quantization_reaches_the_experts_and_says_so_where_it_does_not():
    model = mixture("mixtral")
    settings = {"bits": 4, "weights": 16, "activations": None, "examples": 16, "batch_size": 16}
    left = Quantize(**settings).plan(model).decisions["left_alone"]["model.layers.0.mlp.experts"]
    assert "SplitExperts" in left
    ids = next(Texts().batches("train", 4))["input_ids"]
    expected = model(ids).logits.detach()
    split = apply(model, SplitExperts().plan(model))
    errors = {}
    for rounding in ("nearest", "gptq"):
        plan = Quantize(**settings, rounding=rounding).plan(split, Texts())
        assert sum(".experts." in path for path in plan.decisions["modules"]) == 2 * 4 * 2
        small = apply(copy.deepcopy(split), plan)
        errors[rounding] = float((small(ids).logits.detach() - expected).norm() / expected.norm())
    assert errors["gptq"] < errors["nearest"] < 0.5


def test_what_has_no_such_experts_is_refused():
    with pytest.raises(UsageError, match="no experts whose weights are one tensor"):
        SplitExperts().plan(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ArtifactError, match="without experts"):
        apply(nn.Sequential(nn.Linear(2, 2)), Plan("split_experts", {"paths": ["0"]}))
    model = mixture("mixtral")
    assert SplitExperts(ignore="model.layers.0.*").plan(model).decisions["paths"] == ["model.layers.1.mlp.experts"]
