import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import encoder_decoder, prefix_decoder
from limbeck.models.deletion import DeleteGate, FixedGate, delete
from limbeck.models.encoder_decoder import left_padded
from limbeck.models.layers import Attention, SoftmaxOne

SIZES = {"source": 12, "target": 6, "width": 16, "heads": 2}


def made(**more):
    torch.manual_seed(0)
    model = encoder_decoder(20, **SIZES, encoder_depth=3, decoder_depth=2, **more).eval()
    for name, parameter in model.named_parameters():
        if "gate" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(batch=3):
    return torch.randint(0, 20, (batch, 10)), torch.randint(0, 20, (batch, 5))


def test_softmax_one_equals_its_formula_with_gradients():
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    expected = scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))
    torch.testing.assert_close(SoftmaxOne()(scores), expected)
    pair = [torch.autograd.grad(y.square().sum(), scores)[0] for y in (SoftmaxOne()(scores), expected)]
    torch.testing.assert_close(*pair)
    assert torch.equal(SoftmaxOne()(torch.full((2, 3), -1e4)), torch.zeros(2, 3))
    assert SoftmaxOne()(torch.full((2, 3), 1e4)).sum(-1).allclose(torch.ones(2))


def test_cross_attention_equals_torch_and_added_masks_equal_boolean_ones():
    attention = Attention(12, 3)
    x, source = torch.randn(2, 4, 12), torch.randn(2, 7, 12)
    keep = torch.rand(2, 1, 1, 7) < 0.6
    keep[..., 0] = True
    heads = [
        p(y).reshape(2, -1, 3, 4).transpose(1, 2)
        for p, y in ((attention.query, x), (attention.key, source), (attention.value, source))
    ]
    mixed = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=keep)
    expected = attention.output(mixed.transpose(1, 2).reshape(2, 4, 12))
    memory = attention.memory(source)
    torch.testing.assert_close(attention(x, keep, memory=memory), expected)
    added = torch.zeros(keep.shape).masked_fill(~keep, float("-inf"))
    torch.testing.assert_close(attention(x, added, memory=memory), expected)


def test_targets_see_the_past_and_the_whole_source():
    model = made()
    source, target = inputs()
    expected = model(source, target)
    assert expected.shape == (3, 5, 20)
    later = target.clone()
    later[:, 3:] = (later[:, 3:] + 1) % 20
    torch.testing.assert_close(model(source, later)[:, :3], expected[:, :3])
    other = source.clone()
    other[:, 9] = (other[:, 9] + 1) % 20
    assert not torch.allclose(model(other, target)[:, 0], expected[:, 0])
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(source, target), expected)


@pytest.mark.parametrize("kind", ["encoder_decoder", "prefix_decoder"])
def test_generating_with_a_cache_equals_choosing_the_likeliest_anew(kind):
    model = made() if kind == "encoder_decoder" else prefix_decoder(20, 12, 6, depth=2, width=16, heads=2).eval()
    source, _ = inputs()
    mask = torch.ones(3, 10).long()
    mask[1, 6:] = 0
    for given in (None, mask):
        made_up = model.generate(source, 7, 4, given)
        target = torch.full((3, 1), 7)
        for _ in range(4):
            target = torch.cat([target, model(source, target, given)[:, -1:].argmax(-1)], 1)
        assert torch.equal(made_up, target[:, 1:])


def test_padding_of_the_source_changes_nothing():
    model = made()
    source, target = inputs()
    padded = torch.cat([source, torch.zeros(3, 2).long()], 1)
    mask = torch.tensor([[1] * 10 + [0] * 2] * 3)
    torch.testing.assert_close(model(padded, target, mask), model(source, target))


def test_a_decoder_only_model_answers_where_an_encoder_decoder_does():
    model = prefix_decoder(20, 10, 6, depth=2, width=16, heads=2).eval()
    source, target = inputs()
    made_up = model(source, target)
    assert made_up.shape == (3, 5, 20)
    for t in range(5):
        whole = torch.cat([source, target[:, 1 : t + 1]], 1)
        torch.testing.assert_close(made_up[:, t], model.model(whole)[:, -1])
    other = target.clone()
    other[:, 0] = (other[:, 0] + 1) % 20
    assert torch.equal(model(source, other), made_up), "the start token is not read"
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(source, target), made_up)


def test_sources_move_to_the_right_end():
    ids, mask = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 0]]), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    moved, kept = left_padded(ids, mask)
    assert moved.tolist() == [[0, 0, 5, 6], [0, 7, 8, 9]] and kept.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]


def test_deletion_keeps_the_order_and_fills_short_rows():
    h = torch.arange(10.0).reshape(2, 5, 1)
    gate = torch.tensor([[-2.0, -30, -1, -29, -3], [-30, -30, -30, -4, -30]])
    states, kept = delete(h, gate)
    assert states[..., 0].tolist()[0] == [0, 2, 4] and states[1, 0].item() == 8
    assert kept.tolist() == [[-2, -1, -3], [-4, float("-inf"), float("-inf")]]
    states, kept = delete(h, torch.full((2, 5), -30.0))
    assert states.shape == (2, 1, 1) and (kept == float("-inf")).all(), "where nothing is kept, nothing is attended"


def test_the_gate_equals_its_formula():
    gate = DeleteGate(6)
    torch.nn.init.normal_(gate.weight.weight)
    h = torch.randn(2, 5, 6)
    normal = (h - h.mean(-1, keepdim=True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    score = (normal * gate.weight.weight[0]).sum(-1) + gate.weight.bias
    torch.testing.assert_close(gate(h), -30 / (1 + score.exp()))
    gate.start()
    assert (gate(h) > -15).all(), "at first every token is kept"


@pytest.mark.parametrize("gate", ["learnt", "stride"])
@pytest.mark.parametrize("padded", [False, True])
def test_soft_and_hard_deletion_agree(gate, padded):
    model = made(gate=gate)
    if gate == "learnt":
        torch.nn.init.normal_(model.gate.weight.weight, std=40.0)  # decided gates: near the floor or near 0
        torch.nn.init.zeros_(model.gate.weight.bias)
    source, target = inputs(6)
    mask = (torch.arange(10) < torch.randint(4, 11, (6, 1))).long() if padded else None
    made_up = {}
    for model.soft in (True, False):
        states, _ = model.encode(source, mask)
        made_up[model.soft] = model(source, target, mask)
        lengths = states.shape[1]
    assert lengths < 10
    torch.testing.assert_close(made_up[True], made_up[False], atol=1e-4, rtol=1e-4)
    model.soft = None
    assert torch.equal(model(source, target, mask), made_up[False]), "in evaluation tokens are really taken out"
    with torch.no_grad():
        model.generate(source, 0, 3, mask)


def test_fixed_gates_delete_their_share():
    h = torch.zeros(3, 8, 4)
    stride = FixedGate(0.5, "stride")(h)
    assert stride[0].tolist() == [0, -30, 0, -30, 0, -30, 0, -30]
    drawn = FixedGate(0.25, "random")(h)
    assert (drawn == 0).sum(1).tolist() == [6, 6, 6] and len({tuple(row.tolist()) for row in drawn}) > 1


def test_every_parameter_learns_with_a_soft_gate():
    model = made(gate="learnt").train()
    source, target = inputs()
    model(source, target).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0}
    assert unused == set(), unused


def test_nonsense_is_refused():
    for make, words in (
        (lambda: made(gate="magic"), "learnt, random, stride"),
        (lambda: made(gate="learnt", gate_after=3), "gate_after=3"),
        (lambda: FixedGate(1.0, "stride"), "rate=1.0"),
        (lambda: DeleteGate(4, floor=1.0), "floor=1.0"),
        (lambda: made()(torch.zeros(1, 13).long(), torch.zeros(1, 2).long()), "13 positions"),
        (lambda: made()(torch.zeros(1, 3).long(), torch.zeros(1, 7).long()), "7 positions"),
    ):
        with pytest.raises(UsageError, match=words):
            make()
