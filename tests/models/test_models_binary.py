"""Binary layers, against integers, XNOR and popcount."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import binary_encoder, encoder
from limbeck.models.binary import Binary, BinaryAttention, BinaryEmbedding, BinaryLinear, binary
from limbeck.quantization import BinaryGrid, PerChannel, Quantizer
from limbeck.signals import capture


def bits(x):
    """The signs of rows (n, 64), packed: 1 for x >= 0, as unsigned integers."""
    return [int("".join("1" if value >= 0 else "0" for value in row), 2) for row in x.tolist()]


def test_the_product_is_xnor_and_popcount_with_a_scale_per_row():
    torch.manual_seed(0)
    layer, x = BinaryLinear(64, 5), torch.randn(3, 64)
    with torch.no_grad():
        layer.weight.add_(0.05)  # so that the mean of a row matters
    weight = layer.weight.detach()
    rows = bits(weight - weight.mean(1, keepdim=True))
    expected = [
        [
            float(weight[o].abs().mean()) * (64 - 2 * (a ^ w).bit_count()) + float(layer.bias[o].detach())
            for o, w in enumerate(rows)
        ]
        for a in bits(x)
    ]
    torch.testing.assert_close(layer(x), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_clipped_identity():
    torch.manual_seed(1)
    layer = BinaryLinear(4, 2, bias=False)
    x = torch.tensor([[0.5, -2.0, 0.0, 1.0]], requires_grad=True)
    given = torch.tensor([[0.3, -0.7]])
    layer(x).backward(given)
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    torch.testing.assert_close(x.grad, (given @ layer.binary_weight.detach()) * torch.tensor([[1.0, 0, 1, 0]]))
    plain = given.T @ signs
    torch.testing.assert_close(layer.weight.grad, plain - plain.mean(1, keepdim=True))


def test_zero_counts_as_positive():
    assert binary(torch.tensor([-1e-9, 0.0, 1e-9])).tolist() == [-1.0, 1.0, 1.0]
    assert Binary(0.0)(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 1.0, 1.0]


def test_attention_is_counting_signs():
    torch.manual_seed(2)
    layer = BinaryAttention(8, 2).eval()
    x = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    seen = {}
    layer.output.register_forward_pre_hook(lambda _, args: seen.update(context=args[0].detach()))
    layer(x, mask[:, None, None, :])
    signs = {name: np.where(getattr(layer, name)(x).detach().numpy() >= 0, 1, -1) for name in ("query", "key", "value")}
    for b in range(2):
        for i in range(5):
            for head in (slice(0, 4), slice(4, 8)):
                total = np.zeros(4, dtype=int)
                for j in range(5):
                    if mask[b, j] and int(signs["query"][b, i, head] @ signs["key"][b, j, head]) >= 0:
                        total += signs["value"][b, j, head]
                assert seen["context"][b, i, head].tolist() == total.tolist()


def test_the_sign_of_a_softmax_attends_to_everything():
    maps = BinaryAttention(8, 2, maps="softmax").weights
    scores = torch.tensor([[0.3, -5.0, torch.finfo(torch.float32).min]], requires_grad=True)
    assert maps(scores).tolist() == [[1.0, 1.0, 0.0]]
    maps(scores)[0, 0].backward()
    share = torch.sigmoid(torch.tensor(5.3))
    torch.testing.assert_close(scores.grad[0, 0], share * (1 - share))


def test_a_float_encoder_loads_and_masked_tokens_change_nothing():
    torch.manual_seed(3)
    sizes = {"vocabulary": 11, "classes": 3, "length": 6, "depth": 2, "width": 8, "heads": 2}
    model = binary_encoder(**sizes).eval()
    model.load_state_dict(encoder(**sizes).state_dict())
    assert {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {BinaryLinear, nn.Linear}
    assert [path for path, m in model.named_modules() if type(m) is nn.Linear] == ["head"]
    ids = torch.tensor([[1, 2, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0]])
    torch.testing.assert_close(model(ids, mask), model(torch.tensor([[1, 2, 3, 9]]), mask))
    found = capture(model, {"input_ids": ids, "attention_mask": mask}, {"blocks.0.attention.weights"})
    maps = found["blocks.0.attention.weights"]
    assert set(maps.unique().tolist()) <= {0.0, 1.0} and float(maps[..., 3].abs().max()) == 0
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(ids, mask), model(ids, mask))


@pytest.mark.parametrize("kind", [lambda: BinaryLinear(24, 5), lambda: BinaryEmbedding(5, 24)])
def test_one_bit_a_weight_and_a_scale_a_row_hold_it(kind):
    torch.manual_seed(4)
    weight = kind().binary_weight.detach()
    quantizer = Quantizer(BinaryGrid(), PerChannel(0), "absmean")
    packed = quantizer.encode(weight)
    torch.testing.assert_close(quantizer.decode(packed), weight)
    assert packed.nbytes == 5 * 3 + 5 * 4


def test_unknown_maps_are_refused():
    with pytest.raises(UsageError, match="maps"):
        binary_encoder(11, maps="relu")


def test_attention_scale_does_not_change_the_map():
    scores = torch.randn(3, 4)
    assert torch.equal(Binary(0.0)(scores / math.sqrt(8)), Binary(0.0)(scores))
