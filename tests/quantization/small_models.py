"""Small models of linear layers and convolutions, examples to calibrate them with, and settings of `Quantize`."""

import torch
from torch import nn


class Examples:
    """As much of a task as calibration reads."""

    def __init__(self, *shape, count=48, key="pixel_values", extra=None):
        self.x, self.key = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5)), key
        self.extra = extra or {}

    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        for start in range(0, min(len(self.x), limit or len(self.x)), batch_size):
            part = slice(start, start + batch_size)
            yield {self.key: self.x[part], **{name: value[part] for name, value in self.extra.items()}}


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.grouped = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.tanh(self.depthwise(torch.relu(self.grouped(x)))).mean((2, 3)))


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 6)).eval()


def convolutions():
    torch.manual_seed(0)
    return Convolutions().eval()


SETTINGS = {
    "static": {},
    "static_tensor_mse": {"weights": "tensor", "method": "mse", "calibration": "minmax"},
    "static_group": {"weights": 16, "symmetric": True, "calibration": "percentile"},
    "static_w4": {"bits": 4},
    "static_a6": {"activation_bits": 6},
    "dynamic": {"activations": "dynamic"},
    "dynamic_a6": {"activations": "dynamic", "activation_bits": 6},
    "int8": {"activations": None},
    "int8_group": {"activations": None, "weights": 32},
    "int4_group": {"bits": 4, "weights": 32, "activations": None},
    "int4_group_symmetric": {"bits": 4, "weights": 32, "activations": None, "symmetric": True},
    "int3_channel": {"bits": 3, "activations": None},
    "int4_bfloat16": {"bits": 4, "weights": 32, "activations": None, "compute": "bfloat16"},
    "int4_bfloat16_symmetric": {
        "bits": 4,
        "weights": 32,
        "activations": None,
        "compute": "bfloat16",
        "symmetric": True,
    },
    "int8_bfloat16": {"activations": None, "compute": "bfloat16"},
}
MODELS = {"perceptron": (perceptron, Examples(64)), "convolutions": (convolutions, Examples(3, 8, 8))}
