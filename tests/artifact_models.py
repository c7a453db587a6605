"""Models, a report and checks that the tests of artifacts share."""

from __future__ import annotations

import json

import torch
from torch import nn

from limbeck import manifest
from limbeck.artifact import load, save
from limbeck.build import Factory, lineage, with_lineage
from limbeck.plan import Plan
from limbeck.weights import weights_digest

HERE = "artifact_models"
REPORT = {
    "format": 1,
    "name": "small model",
    "seed": 3,
    "task": {"name": "image_classification", "dataset": "digits", "metric": "accuracy", "better": "higher"},
    "environment": {"torch": "2.13", "threads": 2},
    "stages": [
        {
            "name": "student",
            "form": "torch float32",
            "measurements": {
                "accuracy": {"name": "accuracy", "value": 0.9765, "unit": "", "runs": 1, "low": 0.9765, "high": 0.9765},
                "latency": {
                    "name": "latency",
                    "value": 0.0012,
                    "unit": "seconds",
                    "runs": 9,
                    "low": 0.001,
                    "high": 0.0015,
                },
            },
        }
    ],
}


class Tied(nn.Module):
    """A recurrent language model with tied embeddings, an own constant and a random one that no state dict holds."""

    def __init__(self, width: int):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.cell = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("angles", torch.arange(width) / width, persistent=False)
        self.register_buffer("noise", torch.randn(width), persistent=False)
        self.scale = torch.tensor([1.5])  # a plain attribute: only a real build makes it

    def forward(self, input_ids):
        return self.head(self.cell(self.embedding(input_ids) * self.angles + self.noise)[0]) * self.scale


class Conv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, groups=width),
        )
        self.head = nn.Linear(width, 4)

    def forward(self, pixel_values):
        return self.head(self.body(pixel_values).mean((2, 3)))


def make_tied(width: int) -> nn.Module:
    return Tied(width)


def make_conv(width: int) -> nn.Module:
    return Conv(width)


class Noise(nn.Module):
    """Random numbers before anything else, in no state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("noise", torch.rand(4), persistent=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.noise * self.scale


def make_noise() -> nn.Module:
    return Noise()


def make_bert(hidden: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            hidden_size=hidden,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=hidden,
            vocab_size=30,
            max_position_embeddings=16,
        )
    )


def apply_widen(model: nn.Module, plan: Plan) -> nn.Module:
    """A plan of the test: another number of outputs."""
    model.head = nn.Linear(model.head.in_features, plan.decisions["classes"])
    return model


def tied(width: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return with_lineage(Tied(width), Factory(f"{HERE}:make_tied", {"width": width})).eval()


def conv(width: int = 8) -> nn.Module:
    torch.manual_seed(2)
    model = with_lineage(Conv(width), Factory(f"{HERE}:make_conv", {"width": width}))
    model(torch.randn(16, 1, 8, 8))  # running statistics that are not the initial ones
    return model.eval()


TOKENS = torch.arange(10).reshape(2, 5)
PIXELS = torch.linspace(-1, 1, 2 * 64).reshape(2, 1, 8, 8)


def same(model: nn.Module, folder, inputs) -> nn.Module:
    """Save, load, compare bit for bit; returns the loaded model."""
    save(model, folder)
    loaded = load(folder, trust=[HERE])
    with torch.no_grad():
        assert torch.equal(model(inputs), loaded(inputs))
    assert not loaded.training and weights_digest(loaded) == weights_digest(model)
    assert lineage(loaded) == lineage(model)
    return loaded


def resign(folder) -> None:
    """Make the manifest fit again, as someone who edits an artifact on purpose would."""
    listing = manifest.read(folder)
    manifest.write(folder, listing["files"])


def edit(folder, **changes) -> None:
    path = folder / "architecture.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    resign(folder)


def rewrite_manifest(folder, **changes) -> None:
    content = {k: v for k, v in json.loads((folder / "manifest.json").read_text()).items() if k != "digest"}
    content.update(changes)
    (folder / "manifest.json").write_text(json.dumps({**content, "digest": manifest.digest(content)}))
