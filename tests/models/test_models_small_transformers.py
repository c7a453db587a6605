import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import encoder, gpt, vit
from limbeck.models.layers import Attention, Block
from limbeck.signals import capture

MODELS = {
    "gpt": (lambda: gpt(30, length=12, depth=2, width=16, heads=2), {"input_ids": torch.arange(14).reshape(2, 7)}),
    "encoder": (
        lambda: encoder(30, classes=3, length=12, depth=2, width=16, heads=2),
        {"input_ids": torch.arange(14).reshape(2, 7), "attention_mask": torch.ones(2, 7).long()},
    ),
    "vit": (
        lambda: vit(8, 2, classes=3, channels=1, depth=2, width=16, heads=2),
        {"pixel_values": torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8)},
    ),
}


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    make, batch = MODELS[request.param]
    return make().eval(), batch


def test_attention_equals_torch():
    torch.manual_seed(0)
    attention = Attention(12, 3)
    x = torch.randn(2, 5, 12)
    mask = torch.rand(2, 1, 5, 5) < 0.7
    mask |= torch.eye(5, dtype=torch.bool)
    split = [p(x).reshape(2, 5, 3, 4).transpose(1, 2) for p in (attention.query, attention.key, attention.value)]
    for given in (None, mask):
        mixed = F.scaled_dot_product_attention(*split, attn_mask=given)
        expected = attention.output(mixed.transpose(1, 2).reshape(2, 5, 12))
        assert torch.allclose(attention(x, given), expected, atol=1e-6)


def test_block_equals_torch():
    torch.manual_seed(0)
    block = Block(12, 3, 20, 0.0)
    other = torch.nn.TransformerEncoderLayer(12, 3, 20, 0.0, F.gelu, batch_first=True, norm_first=True)
    attention = block.attention
    parts = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        other.self_attn.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        other.self_attn.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
    other.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    for mine, theirs in (("norm1", "norm1"), ("norm2", "norm2")):
        getattr(other, theirs).load_state_dict(getattr(block, mine).state_dict())
    other.linear1.load_state_dict(block.feed_forward.up.state_dict())
    other.linear2.load_state_dict(block.feed_forward.down.state_dict())
    x = torch.randn(2, 5, 12)
    assert torch.allclose(block(x), other(x), atol=1e-5)


def test_attention_maps_can_be_captured(case):
    model, batch = case
    maps = capture(model, batch, {"blocks.1.attention.weights"})["blocks.1.attention.weights"]
    assert maps.dim() == 4 and maps.shape[1] == 2 and torch.allclose(maps.sum(-1), torch.ones(maps.shape[:3]))


def test_built_again_from_its_lineage(case):
    model, batch = case
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(**batch), again(**batch))


def test_one_and_many_agree(case):
    model, batch = case
    alone = torch.cat([model(**{k: v[i : i + 1] for k, v in batch.items()}) for i in range(2)])
    assert torch.allclose(model(**batch), alone, atol=1e-6)


def test_half_precision_stays_near(case):
    model, batch = case
    expected = model(**batch)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    made = model.bfloat16()(**half)
    assert made.dtype == torch.bfloat16 and torch.allclose(made.float(), expected, atol=0.02)


def test_every_parameter_gets_gradient(case):
    model, batch = case
    model(**batch).square().sum().backward()
    unused = {"attention.key.bias"}  # the same number for every key changes no softmax
    for path, parameter in model.named_parameters():
        assert path.endswith(tuple(unused)) or parameter.grad.abs().sum() > 0, path


def test_gpt_sees_only_the_past():
    torch.manual_seed(0)
    model = gpt(30, length=8, depth=2, width=16, heads=2).eval()
    ids = torch.randint(0, 30, (1, 8))
    other = ids.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 30
    left, right = model(ids), model(other)
    assert torch.equal(left[:, :5], right[:, :5]) and not torch.allclose(left[:, 5:], right[:, 5:])
    assert left.shape == (1, 8, 30)


def test_gpt_starts_near_uniform_and_shares_its_embedding():
    model = gpt(30, length=8, depth=2, width=16, heads=2)
    loss = F.cross_entropy(model(torch.randint(0, 30, (4, 8))).flatten(0, 1), torch.randint(0, 30, (32,)))
    assert loss.item() == pytest.approx(math.log(30), abs=0.1)
    assert model.head.weight is model.tokens.weight
    loose = gpt(30, length=8, depth=2, width=16, heads=2, tied=False)
    extra = sum(p.numel() for p in loose.parameters()) - sum(p.numel() for p in model.parameters())
    assert extra == 30 * 16 and loose.head.weight is not loose.tokens.weight


@pytest.mark.parametrize("name", ["gpt", "encoder"])
def test_padding_changes_nothing(name):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    ids = torch.randint(1, 30, (2, 5))
    padded = torch.cat([ids, torch.tensor([[7, 8], [9, 0]])], 1)
    mask = torch.tensor([[1] * 5 + [0] * 2] * 2)
    made, plain = model(padded, attention_mask=mask), model(ids)
    assert torch.allclose(made[:, :5] if name == "gpt" else made, plain, atol=1e-6)


def test_encoder_survives_a_row_of_padding_only():
    model = MODELS["encoder"][0]().eval()
    made = model(torch.zeros(1, 4).long(), attention_mask=torch.zeros(1, 4).long())
    assert torch.allclose(made, model.head.bias[None])


def test_encoder_depends_on_the_order():
    model = MODELS["encoder"][0]().eval()
    assert not torch.allclose(model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[3, 2, 1]])), atol=1e-7)


def test_vit_patches_in_order():
    model = vit(4, 2, classes=2, channels=1, depth=1, width=8, heads=2)
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    made = model.patches(image).flatten(2).transpose(1, 2)
    for place, (y, x) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        patch = image[0, :, y : y + 2, x : x + 2].flatten()
        assert torch.allclose(made[0, place], model.patches.weight.flatten(1) @ patch + model.patches.bias, atol=1e-5)
    assert model.positions.shape == (1, 5, 8)


def test_vit_reads_the_class_token():
    make, batch = MODELS["vit"]
    model = make().eval()
    signals = capture(model, batch, {"logits", "norm"})
    assert signals["norm"].shape == (2, 17, 16)
    assert torch.equal(signals.logits, model.head(signals["norm"][:, 0]))


def test_bad_sizes():
    with pytest.raises(UsageError, match="heads must divide width; 3 does not divide 16"):
        gpt(10, width=16, heads=3)
    with pytest.raises(UsageError, match="patch must divide size"):
        vit(size=9, patch=2)
    with pytest.raises(UsageError, match="depth must be a whole number"):
        encoder(10, depth=0)
    with pytest.raises(UsageError, match="dropout"):
        gpt(10, dropout=1)
    for model in (gpt(10, length=4, depth=1, width=8, heads=1), encoder(10, length=4, depth=1, width=8, heads=1)):
        with pytest.raises(UsageError, match="the input has 5 positions, the model only 4"):
            model(torch.zeros(1, 5).long())
    with pytest.raises(UsageError, match=r"images must be 8x8, not \(4, 4\)"):
        MODELS["vit"][0]()(torch.zeros(1, 1, 4, 4))


def test_a_distilled_vit_answers_the_mean_of_two_heads():
    model = vit(4, 2, classes=3, channels=1, depth=1, width=8, heads=2, distilled=True).eval()
    torch.nn.init.normal_(model.distillation_token)
    batch = {"pixel_values": torch.randn(2, 1, 4, 4)}
    found = capture(model, batch, {"logits", "head", "distillation_head", "blocks.0"})
    torch.testing.assert_close(found.logits, (found["head"] + found["distillation_head"]) / 2)
    assert found["blocks.0"].shape == (2, 6, 8)
    states = model.norm(found["blocks.0"])
    torch.testing.assert_close(found["head"], model.head(states[:, 0]))
    torch.testing.assert_close(found["distillation_head"], model.distillation_head(states[:, 1]))
    again = build(lineage(model).factory)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    plain = vit(4, 2, classes=3, channels=1, depth=1, width=8, heads=2)
    assert "distill" not in repr(plain) and "distilled" not in lineage(plain).factory.arguments
