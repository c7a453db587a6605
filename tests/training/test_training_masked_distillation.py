"""Distilled masked images: both see the same patches, the teacher no more than it must, and the loss is what it says."""

import pytest
import torch
from test_training_masked_images import encoder, images
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.models import vit
from limbeck.objectives import Hint, SoftTargets, TokenRelations
from limbeck.training import DistilMaskedImages, MaskedImages, Trainer, TrainingConfig

HINT = Hint("model.blocks.0", "model.blocks.1", loss="l1", normalize=True, projector="linear")


def wide(seed=7, depth=4):
    torch.manual_seed(seed)
    return vit(size=4, patch=2, classes=3, channels=2, depth=depth, width=12, heads=2)


def prepared(objective=HINT, **settings):
    procedure = DistilMaskedImages(encoder(), wide(), objective, ratio=0.5, **settings)
    procedure.prepare({"pixel_values": images()}, torch.device("cpu"))
    return procedure


def states(model, x, shown, deepest):
    """The tokens after block `deepest`, computed one image and one block at a time."""
    rows = []
    for image, kept in zip(x, shown):
        tokens = model.embed(image[None])
        seen = torch.cat([tokens[:, :1], *(tokens[:, 1 + n : 2 + n] for n in kept.tolist())], 1)
        for block in model.blocks[: deepest + 1]:
            seen = block(seen)
        rows.append(seen)
    return torch.cat(rows)


def step(procedure, batch, seed=3):
    torch.manual_seed(seed)
    return procedure.step(batch, None)["main"]


def test_value_and_gradient_are_the_formulas():
    procedure, x = prepared(reconstruction=0.5), images()
    weights = torch.tensor([1.0, 0.0, 2.0])
    loss = step(procedure, {"pixel_values": x, "sample_weight": weights, "labels": torch.zeros(3)})
    torch.manual_seed(3)
    shown = procedure.draw(x)
    assert shown.shape == (3, 2)
    plain = MaskedImages(procedure.encoder, 0.5)
    plain.decoder = procedure.decoder
    torch.manual_seed(3)
    pixels = plain.step({"pixel_values": x, "sample_weight": weights}, None)["main"].value
    own = procedure.connectors["projector"](states(procedure.encoder, x, shown, 0))
    target = states(procedure.teacher.model.model, x, shown, 1).detach()
    distances = 0.0
    for b, weight in ((0, 1.0), (2, 2.0)):
        for token in range(3):
            a, t = own[b, token], target[b, token]
            distances = distances + weight * (a / a.norm() - t / t.norm()).abs().mean() / 9
    expected = 0.5 * pixels + distances
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.parts["reconstruction"], pixels.detach(), rtol=1e-5, atol=1e-6)
    parameters = [p for m in procedure.modules.values() for n, p in m.named_parameters() if not n.startswith("head")]
    for found, wanted in zip(
        torch.autograd.grad(loss.value, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_teacher_stops_at_the_layer_that_is_read_and_is_never_moved():
    procedure = prepared()
    teacher, called = procedure.teacher.model.model, []
    for at, block in enumerate(teacher.blocks):
        block.register_forward_hook(lambda _, inputs, __, at=at: called.append((at, inputs[0].shape)))
    step(procedure, {"pixel_values": images()}).value.backward()
    assert called == [(0, (3, 3, 12)), (1, (3, 3, 12))]  # the class token and two of four patches
    assert all(p.grad is None for p in teacher.parameters())


def test_without_pixels_there_is_no_decoder_and_no_block_beyond_the_hint():
    procedure = prepared(reconstruction=0.0)
    assert set(procedure.modules) == {"encoder", "connector.projector"}
    called = []
    for at, block in enumerate(procedure.encoder.blocks):
        block.register_forward_hook(lambda *_, at=at: called.append(at))
    loss = step(procedure, {"pixel_values": images()})
    assert set(loss.parts) == {"Hint(model.blocks.0)"} and called == [0]


def test_any_objective_on_hidden_states():
    names = [[f"model.blocks.{layer}.attention.{part}" for part in ("query", "key")] for layer in (1, 3)]
    procedure = prepared(TokenRelations(*names, heads=2) + HINT)
    loss = step(procedure, {"pixel_values": images()})
    assert len(loss.parts) == 3 and bool(loss.value.isfinite())


def test_it_trains_and_repeats():
    def trained():
        procedure = DistilMaskedImages(encoder(), wide(), 10 * HINT, ratio=0.5, width=16, depth=1, heads=2)
        config = TrainingConfig(epochs=30, batch_size=12, learning_rate=0.01, augment=False)
        return Trainer(config, progress=False).run(procedure, TinyTask()).steps

    steps = trained()
    first, last = (sum(s["parts"]["Hint(model.blocks.0)"] for s in part) for part in (steps[:10], steps[-10:]))
    assert last < 0.6 * first
    assert [s["loss"] for s in trained()] == [s["loss"] for s in steps]


def test_settings_tell_procedures_apart():
    told = [prepared(reconstruction=w).describe() for w in (0.5, 1.0)] + [prepared(2 * HINT).describe()]
    assert len({str(t) for t in told}) == 3


def test_refusals():
    own, teacher = encoder(), wide()
    with pytest.raises(UsageError, match="hidden states"):
        DistilMaskedImages(own, teacher, SoftTargets())
    with pytest.raises(UsageError, match="logits"):
        DistilMaskedImages(own, teacher, HINT + SoftTargets())
    with pytest.raises(UsageError, match="same images"):
        DistilMaskedImages(own, vit(size=8, patch=2, classes=3, channels=2, depth=1, width=8, heads=2), HINT)
    with pytest.raises(UsageError, match="same images and patches"):
        DistilMaskedImages(own, nn.Linear(2, 2), HINT)
    with pytest.raises(UsageError, match="same module"):
        DistilMaskedImages(own, own, HINT)
    with pytest.raises(UsageError, match="reconstruction"):
        DistilMaskedImages(own, teacher, HINT, reconstruction=-1.0)
    with pytest.raises(UsageError, match="distillation token"):
        MaskedImages(vit(size=4, patch=2, classes=3, channels=2, depth=1, width=8, heads=2, distilled=True))
