"""FLOPs against hand counts, for what torch's counter knows and for what it does not."""

import pytest
import torch
from measure_tiny import TinyTask, tiny_model
from torch import nn
from torch.nn import functional

from limbeck.measure.flops import count_flops, flops


class Run(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def attention(x):
    return functional.scaled_dot_product_attention(x, x, x)


CASES = {
    "linear": (nn.Linear(8, 5), (3, 8), 2 * 3 * 8 * 5),
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5), 2 * 2 * 6 * 25 * 4 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (1, 4, 5, 5), 2 * 4 * 25 * 9),
    "strided": (nn.Conv2d(4, 6, 3, stride=2), (1, 4, 7, 7), 2 * 6 * 9 * 4 * 9),
    "attention": (Run(attention), (2, 3, 5, 4), 2 * (2 * 2 * 3 * 5 * 5 * 4)),
    "integer product": (
        Run(lambda x: torch._int_mm(torch.ones(17, 8, dtype=torch.int8), torch.ones(8, 16, dtype=torch.int8))),
        (1, 1),
        2 * 17 * 8 * 16,
    ),
    "matrix and vector": (Run(lambda x: x @ torch.ones(8)), (5, 8), 2 * 5 * 8),
    "activation only": (nn.ReLU(), (5, 8), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_against_hand_counts(name):
    module, shape, expected = CASES[name]
    assert count_flops(nn.Sequential(module), {"x": torch.randn(shape)}) == expected


def test_a_transformer_layer_is_seen_through():
    width, length, hidden = 8, 6, 16
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    projections, mixing, feed_forward = 4 * width * width, 2 * length * width, 2 * width * hidden
    expected = 2 * length * (projections + mixing + feed_forward)
    assert count_flops(layer, {"src": torch.randn(1, length, width)}) == expected
    assert torch.backends.mha.get_fastpath_enabled()


class Packed(nn.Module):
    """Stands for a linear layer, computes with codes in a way no counter understands."""

    def __init__(self):
        super().__init__()
        self.in_features, self.out_features = 6, 5
        self.register_buffer("codes", torch.ones(5, 6, dtype=torch.int8))

    def forward(self, x):
        return (x.unsqueeze(-2) * self.codes).sum(-1) + 0 * (x @ torch.ones(6, 9))[..., :5]


def test_quantized_modules_count_as_the_product_they_stand_for():
    model = nn.Sequential(Packed(), nn.ReLU(), nn.Linear(5, 3))
    assert count_flops(model, {"x": torch.randn(4, 6)}) == 2 * 4 * (6 * 5 + 5 * 3)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


@pytest.mark.parametrize("activations", [None, "dynamic"])
def test_the_whole_model_quantized_counts_the_same(activations):
    from limbeck.models import resnet
    from limbeck.plan import apply
    from limbeck.quantization import Quantize

    model = resnet(8)
    batch = {"pixel_values": torch.randn(1, 3, 32, 32)}
    before = count_flops(model, batch)
    model = apply(model, Quantize(bits=8, activations=activations).plan(model))
    assert count_flops(model, batch) == before > 20e6


def test_the_measurement_grows_with_the_batch():
    one, four = (flops(tiny_model(), TinyTask(), size) for size in (1, 4))
    assert four.value == 4 * one.value and one.settings["multiply_add"] == 2 and one.unit == "FLOPs"
