"""Double rounding against loops, what is stored, and whose turn it is in training."""

import copy

import pytest
import torch
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy
from limbeck.plan import apply
from limbeck.quantization import Quantize, SwitchBits, prepare_switching, store_switching, switch
from limbeck.quantization.bit_switching import SwitchedNorm, double_round, highest_codes, shifted, switchable
from limbeck.quantization.switched_training import switching_probabilities, width_rate
from limbeck.training import Trainer, TrainingConfig
from limbeck.training.procedures import State

TASK = TinyTask()


def made(widths=(8, 4, 2), activations="static"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model.train()
    model(TASK.images)
    settings = {"weights": "tensor", "examples": 24, "activations": activations}
    plans = {b: Quantize(bits=b, activation_bits=b, **settings).plan(model, TASK) for b in widths}
    return prepare_switching(copy.deepcopy(model), plans), model, plans


def test_every_width_is_the_stored_one_rounded_again():
    weight = 0.7 * torch.randn(200, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor(0.01)
    for width in (8, 6, 5, 4, 3, 2):
        found = double_round(weight, scale, 8, width)
        step = 2 ** (8 - width)
        for value, it in zip(weight.tolist(), found.tolist()):
            stored = min(127, max(-128, round(value / scale.item())))
            low = min(2 ** (width - 1) - 1, max(-(2 ** (width - 1)), round(stored / step)))
            assert it == pytest.approx(low * step * 0.01, abs=1e-5)
        codes = highest_codes(weight, scale, 8)
        assert torch.equal(shifted(codes.to(torch.int8), 8, width) * step * scale, found)
    assert torch.equal(shifted(torch.arange(-128, 128), 8, 8), torch.arange(-128, 128).float())


@pytest.mark.parametrize("width", [8, 4, 2])
def test_gradients_go_straight_through(width):
    weight = torch.linspace(-1.5, 1.6, 40).requires_grad_(True)
    scale = torch.tensor(0.01, requires_grad=True)
    draws = torch.randn(40, generator=torch.Generator().manual_seed(1))
    found = double_round(weight, scale, 8, width)
    (found * draws).sum().backward()
    step, ratio = 2 ** (8 - width), weight.detach() / 0.01
    low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
    stored = ratio.round().clamp(-128, 127)
    inside = (ratio.round() == stored) & ((stored / step).round() >= low) & ((stored / step).round() <= high)
    torch.testing.assert_close(weight.grad, draws * inside)
    codes = (stored / step).round().clamp(low, high) * step
    expected = torch.where(inside, codes - ratio, codes)
    torch.testing.assert_close(scale.grad, (expected * draws).sum(), rtol=1e-4, atol=1e-3)


def test_the_highest_width_alone_is_usual_quantization():
    """Inputs on the same ranges; weights on the same scale, since the start is min-max."""
    model, original, plans = made()
    usual = apply(copy.deepcopy(original), plans[8]).eval()
    x = TASK.images
    torch.testing.assert_close(model.eval()(x), usual(x), rtol=1e-3, atol=1e-3)
    low = switch(model, 2)(x)
    assert (low - usual(x)).abs().max() > 0.05


@pytest.mark.parametrize("activations", ["static", None])
def test_what_is_stored_computes_the_same_at_every_width(activations):
    model, _, _ = made(activations=activations)
    model.eval()
    before = {width: switch(model, width)(TASK.images).detach() for width in (8, 4, 2)}
    store_switching(model)
    assert all(layer.weight is None and layer.codes.dtype is torch.int8 for layer in switchable(model).values())
    for width, expected in before.items():
        torch.testing.assert_close(switch(model, width)(TASK.images), expected, rtol=1e-5, atol=1e-5)
    assert store_switching(model) is model
    layer = model[4]
    small = 4 + 12 + 3 * 4 * bool(activations) * 2
    assert layer.nbytes == 64 * 3 + small


def test_widths_layer_by_layer_and_their_norms():
    model, _, _ = made()
    switch(model, {"0": 2, "4": 8})
    assert model[0].width == 2 and model[4].width == 8 and model[1].width == 2
    assert isinstance(model[1], SwitchedNorm) and set(model[1].norms) == {"8", "4", "2"}
    for bad in (3, {"0": 2}, {"0": 2, "4": 7}):
        with pytest.raises(UsageError, match="width"):
            switch(model, bad)
    with pytest.raises(UsageError, match="prepare_switching"):
        switch(nn.Linear(2, 2), 4)


def test_plans_that_do_not_fit_are_refused():
    _, model, plans = made()
    with pytest.raises(UsageError, match="two or more"):
        prepare_switching(model, {8: plans[8]})
    with pytest.raises(UsageError, match="activation_bits"):
        prepare_switching(model, {8: plans[8], 3: plans[2]})
    with pytest.raises(UsageError, match="all widths are static"):
        prepare_switching(model, {8: plans[8], 2: Quantize(bits=2, weights="tensor", activations=None).plan(model)})
    with pytest.raises(UsageError, match="same modules"):
        few = Quantize(bits=2, activation_bits=2, weights="tensor", examples=24, only="4").plan(model, TASK)
        prepare_switching(model, {8: plans[8], 2: few})


def test_rates_and_chances_of_widths():
    assert [width_rate(8, b) for b in (8, 6, 4, 2)] == pytest.approx([1.0, 0.1, 0.01, 0.001])
    assert [width_rate(4, b) for b in (4, 3, 2)] == pytest.approx([1.0, 0.5, 0.1])
    found = switching_probabilities({"a": 1.0, "b": 2.0, "c": 6.0}, (8, 4, 2))
    assert found["a"] == found["b"] == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert found["c"] == pytest.approx((8 / 14, 4 / 14, 2 / 14))


def state(step, steps=30):
    return State(step, steps, 0.0, 0, torch.device("cpu"))


def procedure(**settings):
    model, _, _ = made()
    found = SwitchBits(model, None, CrossEntropy(), **settings)
    found.prepare(BATCH, torch.device("cpu"))
    model.train()
    return found


BATCH = next(iter(TASK.batches("train", 24)))


def test_widths_take_turns_and_only_their_norms_and_scales_move():
    steps = procedure(scaling=False)
    for step, width in enumerate((8, 4, 2, 8)):
        before = {name: norm.running_mean.clone() for name, norm in steps.student[1].norms.items()}
        steps.student.zero_grad()
        losses = steps.step(BATCH, state(step))
        assert steps.width == width and losses["weights"] is losses["scales"]
        losses["weights"].value.backward()
        moved = [name for name, norm in steps.student[1].norms.items() if (norm.running_mean != before[name]).any()]
        assert moved == [str(width)]
        at = [8, 4, 2].index(width)
        assert [bool(g != 0) for g in steps.student[4].input_gain.grad] == [i == at for i in range(3)]
        steps.after_step(state(step))
        assert steps.student[0].width == 8
    only = procedure(widths=(2,))
    only.step(BATCH, state(0))
    assert only.width == 2


def test_summed_losses_are_the_sum():
    one, joint = procedure(), procedure(separate=False)
    alone = [one.step(BATCH, state(step))["weights"].value for step in range(3)]
    torch.testing.assert_close(joint.step(BATCH, state(0))["weights"].value, sum(alone))
    assert joint.learning_rates == {}


def test_the_scales_rate_follows_from_their_gradients():
    steps = procedure()
    for step, width in ((0, 8), (2, 2)):
        steps.student.zero_grad()
        steps.step(BATCH, state(step))["weights"].value.backward()
        layers = [steps.student[0], steps.student[4]]
        steps.student[0].weight_gain.grad.fill_(-1000.0)
        steps.student[4].weight_gain.grad.fill_(0.01)
        steps.student[4].input_gain.grad.fill_(-0.25)
        largest = [min(1.0, max(float(p.grad.abs().max()) for p in layer.scales)) for layer in layers]
        assert largest == [1.0, 0.25]
        expected = width_rate(8, width) * (1 - sum(largest) / 2)
        assert steps.learning_rates["scales"] == pytest.approx(expected)


def test_mixed_widths_leave_their_turn_more_and_more():
    steps = procedure(mixed={"0": 0.0, "4": 9.0})
    torch.manual_seed(0)
    drawn = [steps._drawn(state(29)) for _ in range(300)]
    share = lambda path, width: sum(d[path] == width for d in drawn) / 300  # noqa: E731
    assert abs(share("0", 8) - 1 / 3) < 0.1 and abs(share("4", 8) - 8 / 14) < 0.1 and abs(share("4", 2) - 2 / 14) < 0.1
    early = [steps._drawn(state(0, 1000)) for _ in range(50)]
    assert sum(d == {"0": 8, "4": 8} for d in early) > 45 and steps.learning_rates == {}
    steps.step(BATCH, state(3))
    for bad in ("all", {"0": 1.0}):
        with pytest.raises(UsageError, match="mixed"):
            procedure(mixed=bad)
    with pytest.raises(UsageError, match="mixed"):
        procedure(mixed="uniform", separate=False)
    with pytest.raises(UsageError, match="widths"):
        procedure(widths=(3,))


def test_the_trainer_moves_weights_and_scales():
    model, _, _ = made()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-3, decay_norms_and_biases=False)
    history = Trainer(config, progress=False).run(SwitchBits(model, None, CrossEntropy()), TASK)
    assert history.steps[-1]["step"] == 6
    for name, parameter in model.named_parameters():
        assert (parameter != start[name]).any(), name
    loss = history.steps[-1]["loss"]
    assert 0 < loss < 10


def test_one_loss_for_two_optimizers_is_one_backward_pass_and_counts_once():
    from limbeck.objectives.base import Loss
    from limbeck.training.update import together

    one, other = Loss(torch.tensor(1.0), {}), Loss(torch.tensor(1.0), {})
    assert [names for names, _ in together({"a": one, "b": other, "c": one})] == [["a", "c"], ["b"]]
