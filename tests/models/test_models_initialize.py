import pytest
import torch
from torch import nn

from limbeck.models import vit
from limbeck.models.initialize import unit_variance


def test_signals_keep_their_size():
    model = unit_variance(nn.Sequential(nn.Embedding(50, 400), nn.Linear(400, 300), nn.Linear(300, 100, bias=False)))
    hidden = model[0](torch.arange(50))
    for module in model[1:]:
        assert hidden.std().item() == pytest.approx(1, abs=0.06)
        hidden = module(hidden)
    assert hidden.std().item() == pytest.approx(1, abs=0.06) and not model[1].bias.any()


def test_patches_and_positions_of_a_vision_transformer():
    model = unit_variance(vit(size=32, patch=4, classes=10, channels=3, depth=1, width=400))
    patches = model.patches(torch.randn(2, 3, 32, 32))
    assert patches.std().item() == pytest.approx(1, abs=0.06) and not model.patches.bias.any()
    assert model.positions.std().item() == pytest.approx(1, abs=0.06)


def test_a_shared_head_is_drawn_as_an_embedding():
    model = nn.Sequential(nn.Embedding(50, 400), nn.Linear(400, 50, bias=False))
    model[1].weight = model[0].weight
    unit_variance(model, embeddings=0.2)
    assert model[1].weight is model[0].weight and model[0].weight.std().item() == pytest.approx(0.2, abs=0.01)
