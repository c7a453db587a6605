import pytest
import torch

from limbeck.errors import UsageError
from limbeck.models import encoder_decoder
from limbeck.objectives import CrossEntropy
from limbeck.signals import capture
from limbeck.training.procedures import State
from limbeck.training.rates import HoldRate, RateController


def test_the_controller_follows_its_recursion():
    controller = RateController(0.5, proportional=2.0, integral=0.1, smoothing=0.75)
    p = i = 0.0
    for rate in (0.0, 0.2, 0.9, 1.0, 0.4):
        error = 0.5 - rate
        p, i = 0.75 * p + 0.25 * 2 * error, i + 0.1 * error
        controller.update(rate)
        assert controller.weight.item() == pytest.approx(max(0.0, p + i), abs=1e-6)
    again = RateController(0.5)
    again.load_state_dict(controller.state_dict())
    assert again.weight == controller.weight


def test_a_simple_plant_is_held_at_the_target():
    controller, x = RateController(0.6, proportional=1.0, integral=0.05), 0.0
    for _ in range(400):
        controller.update(x)
        x = min(1.0, float(controller.weight) / 2)  # deletes more, the more it is paid for
    assert x == pytest.approx(0.6, abs=0.02)


def test_only_below_zero_does_the_weight_push_back():
    usual = RateController(0.5, proportional=1.0, integral=0.25, smoothing=0.0)
    both = RateController(0.5, proportional=1.0, integral=0.25, smoothing=0.0, least=-0.75)
    for rate, weight in (
        (0.75, -0.3125),
        (0.0, 0.5 + 0.0625),
        (1.0, -0.5 - 0.0625),
        (1.0, -0.5 - 0.1875),
        (1.0, -0.75),
    ):
        for controller in (usual, both):
            controller.update(rate)
        assert both.weight.item() == pytest.approx(weight) and usual.weight.item() == max(0.0, both.weight.item())


def test_a_plant_that_nothing_brings_down_is_held_only_with_both_signs():
    found = []
    for least in (0.0, -10.0):
        controller, x = RateController(0.6, proportional=1.0, integral=0.01, least=least), 0.0
        for _ in range(600):
            controller.update(x)
            x = min(1.0, x + 0.05 * float(controller.weight))
        found.append(x)
    assert found[0] > 0.65 and found[1] == pytest.approx(0.6, abs=0.02)


def test_the_loss_is_the_objective_and_the_weighted_gate():
    torch.manual_seed(0)
    model = encoder_decoder(11, 8, 4, 2, 1, width=8, heads=2, gate="learnt").train()
    torch.nn.init.normal_(model.gate.weight.weight, std=5.0)
    batch = {
        "input_ids": torch.randint(0, 11, (3, 8)),
        "attention_mask": (torch.arange(8) < torch.tensor([[8], [5], [3]])).long(),
        "decoder_input_ids": torch.randint(0, 11, (3, 4)),
        "labels": torch.randint(0, 11, (3, 4)),
    }
    controller = RateController(0.9, proportional=3.0, smoothing=0.0)
    controller.update(0.2)
    procedure = HoldRate(model, None, CrossEntropy(), "gate", controller)
    state = State(0, 1, 0.0, 0, torch.device("cpu"))
    loss = procedure.step(batch, state)["main"]
    signals = capture(model, batch, {"logits", "gate"})
    inside = batch["attention_mask"].bool()
    gate = signals["gate"][inside]
    expected = torch.nn.functional.cross_entropy(signals.logits.flatten(0, 1), batch["labels"].flatten())
    torch.testing.assert_close(loss.value, expected + 2.1 * gate.mean(), rtol=1e-4, atol=1e-4)
    rate = (gate < -15).float().mean()
    assert 0 < rate < 1 and loss.parts["deleted"].item() == pytest.approx(rate.item())
    procedure.after_step(state)
    assert controller.weight.item() == pytest.approx(
        max(0, 3 * (0.9 - rate.item()) + 1e-5 * (1.6 - rate.item())), abs=1e-5
    )
    assert procedure.kept_modules()["controller"] is controller


def test_nonsense_is_refused():
    for settings in (
        {"target": 1.5},
        {"target": 0.5, "integral": -1},
        {"target": 0.5, "smoothing": 1.0},
        {"target": 0.5, "least": 0.1},
    ):
        with pytest.raises(UsageError, match="RateController"):
            RateController(**settings)
