"""Masked images: what is hidden is not seen, the loss is that of the hidden patches, and the encoder learns."""

import pytest
import torch
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.models import vit
from limbeck.training import MaskedImages, Trainer, TrainingConfig


def encoder(seed=0):
    torch.manual_seed(seed)
    return vit(size=4, patch=2, classes=3, channels=2, depth=2, width=8, heads=2)


def images(count=3, seed=0):
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_mean_over_hidden_patches_of_scaled_pixels():
    procedure, x = MaskedImages(encoder(), ratio=0.5), images()
    torch.manual_seed(3)
    loss = procedure.step({"pixel_values": x, "sample_weight": torch.tensor([1.0, 0.0, 2.0])}, None)["main"].value
    torch.manual_seed(3)
    shown = procedure.draw(x)
    drawn = procedure.drawn(x, shown)
    total = 0
    for b, weight in ((0, 1.0), (2, 2.0)):
        for n in set(range(4)) - set(shown[b].tolist()):
            row, column = 2 * (n // 2), 2 * (n % 2)
            patch = x[b, :, row : row + 2, column : column + 2].flatten()
            patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total = total + weight * (drawn[b, n] - patch).square().mean()
    torch.testing.assert_close(loss, total / 6)
    plain = MaskedImages(encoder(), normalize=False).targets(x)
    torch.testing.assert_close(plain[1, 3], x[1, :, 2:, 2:].flatten())


def test_hidden_patches_are_not_seen_and_shown_ones_are():
    procedure, x = MaskedImages(encoder(), ratio=0.5), images(1)
    shown = torch.tensor([[3, 0]])
    hidden, seen = x.clone(), x.clone()
    hidden[:, :, :2, 2:], seen[:, :, 2:, 2:] = 9.0, 9.0  # patch 1 and patch 3
    before = procedure.drawn(x, shown)
    assert torch.equal(procedure.drawn(hidden, shown), before)
    assert not torch.equal(procedure.drawn(seen, shown), before)


def test_shown_patches_go_back_to_their_places():
    """The decoder, made the identity, returns every shown patch's own code and the same learned token elsewhere."""
    procedure, x = MaskedImages(encoder(), ratio=0.5, width=8), images(2)
    decoder = procedure.decoder
    decoder.narrow = decoder.norm = decoder.pixels = nn.Identity()
    decoder.blocks = nn.ModuleList()
    nn.init.zeros_(decoder.positions)
    shown = torch.tensor([[2, 0], [1, 3]])
    drawn = procedure.drawn(x, shown)
    tokens = procedure.encoder.embed(x)
    for b in range(2):
        kept = torch.cat([tokens[b : b + 1, :1], tokens[b : b + 1, 1 + shown[b]]], 1)
        codes = procedure.encoder.encode(kept)[0, 1:]
        torch.testing.assert_close(drawn[b, shown[b]], codes)
        missing = [n for n in range(4) if n not in shown[b].tolist()]
        assert bool((drawn[b, missing] == decoder.hidden).all())


def test_all_patches_encoded_at_once_are_the_models_own():
    model, x = encoder().eval(), images()
    torch.testing.assert_close(model.head(model.encode(model.embed(x))[:, 0]), model(x))


def test_it_trains_and_a_gradient_reaches_all_but_the_head():
    procedure = MaskedImages(encoder(), ratio=0.5, width=16, depth=1, heads=2)
    config = TrainingConfig(epochs=30, batch_size=12, learning_rate=0.01, augment=False)
    history = Trainer(config, progress=False).run(procedure, TinyTask())
    first, last = (sum(s["loss"] for s in part) / 10 for part in (history.steps[:10], history.steps[-10:]))
    assert last < 0.9 * first
    procedure.encoder.zero_grad()
    procedure.step({"pixel_values": images()}, None)["main"].value.backward()
    without = {name for name, p in procedure.encoder.named_parameters() if p.grad is None}
    assert without == {"head.weight", "head.bias"}


def test_refusals():
    for ratio in (0.0, 1.0, 0.05):
        with pytest.raises(UsageError, match="ratio"):
            MaskedImages(encoder(), ratio)
    with pytest.raises(UsageError, match="Linear"):
        MaskedImages(nn.Linear(2, 2))
