"""Signals: calling models, capturing what is named, and nothing else."""

import pytest
import torch
from torch import nn

from limbeck.errors import UsageError
from limbeck.signals import Signals, Tap, call, capture, first_tensor, match_paths


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return {"logits": x if attention_mask is None else x * attention_mask[..., None], "other": x}


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


BATCH = {
    "input_ids": torch.arange(6).reshape(2, 3),
    "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    "labels": torch.zeros(2),
}


def test_batches_reach_the_model_by_name_and_labels_never_do():
    out = first_tensor(call(Text(), BATCH))
    assert out.shape == (2, 3, 4) and out[0, 2].abs().sum() == 0


def test_a_plain_module_gets_the_first_entry():
    model = nn.Linear(4, 2)
    x = torch.randn(3, 4)
    assert torch.equal(call(model, {"pixel_values": x, "labels": torch.zeros(3)}), model(x))
    with pytest.raises(UsageError, match="no model inputs"):
        call(model, {"labels": torch.zeros(3)})


def test_outputs_and_inputs_are_captured_by_path():
    model = Text()
    signals = capture(model, BATCH, {"logits", "layers.0", "layers.1:input"})
    assert set(signals) == {"logits", "layers.0", "layers.1:input"}
    assert torch.equal(signals["layers.0"], signals["layers.1:input"])
    assert torch.equal(signals["layers.0"], model.layers[0](model.embed(BATCH["input_ids"])))


def test_an_asterisk_captures_every_match():
    assert set(capture(Text(), BATCH, {"layers.*"})) == {"layers.0", "layers.1"}
    assert match_paths(Text(), "lay*.0") == ["layers.0"]


def test_gradients_flow_through_captured_signals():
    model = Text()
    capture(model, BATCH, {"layers.0"})["layers.0"].sum().backward()
    assert model.embed.weight.grad is not None and model.layers[1].weight.grad is None


def test_a_partial_pass_ends_after_the_deepest_signal():
    model, ran = Text(), []
    for at, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, at=at: ran.append(at))
    whole = capture(model, BATCH, {"embed", "layers.0"})
    part = capture(model, BATCH, {"embed", "layers.0"}, partial=True)
    assert ran == [0, 1, 0] and all(torch.equal(part[name], whole[name]) for name in ("embed", "layers.0"))
    assert set(capture(model, BATCH, {"logits", "layers.0"}, partial=True)) == {"logits", "layers.0"}
    assert set(capture(model, BATCH, {"layers.0:input", "layers.1:weight"}, partial=True)) == {
        "layers.0:input",
        "layers.1:weight",
    }
    assert ran == [0, 1, 0, 0, 1]


def test_hooks_are_gone_afterwards_also_after_an_error():
    model = Text()
    capture(model, BATCH, {"layers.0"})
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), Tap(model, {"layers.0"}) as tap:
        tap({"input_ids": torch.zeros(2, 3)})
    assert hooks(model) == 0
    with pytest.raises(UsageError, match=r"layers\.0"):
        capture(model, BATCH, {"layers.0", "layrs.0"})
    assert hooks(model) == 0


@pytest.mark.parametrize("name", ["nowhere", "layers.0:sideways"])
def test_names_that_mean_nothing(name):
    with pytest.raises(UsageError):
        capture(Text(), BATCH, {name})


def test_a_signal_that_was_not_captured_names_the_near_ones():
    with pytest.raises(UsageError, match="logits"):
        Signals({"logits": torch.zeros(1)})["logit"]


def test_detached_signals_carry_no_gradient():
    signals = capture(nn.Linear(2, 2), {"x": torch.ones(1, 2)}, {"logits"})
    assert signals.logits.requires_grad and not signals.detach().logits.requires_grad


def test_an_output_without_a_tensor_says_what_to_return():
    with pytest.raises(UsageError, match="logits"):
        first_tensor(3)
