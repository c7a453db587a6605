"""Bits per layer under a budget: the budget is kept, the choice is the best there is, and the plan replays."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import BudgetError, UsageError
from limbeck.plan import Plan, apply
from limbeck.quantization import MixedPrecision, Quantize, QuantizedLinear
from limbeck.search import weight_traces
from limbeck.signals import Tap


class Rows:
    def batches(self, split, batch_size, *, limit=None, **_):
        assert split == "train"
        draws = torch.Generator().manual_seed(0)
        for _ in range(0, limit, batch_size):
            x = torch.randn(batch_size, 8, generator=draws)
            yield {"input": x, "labels": (x[:, 0] > 0).long()}

    def loss(self, logits, batch):
        return F.cross_entropy(logits, batch["labels"])


def perceptron():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.Linear(12, 2)
    )
    model[2].weight.data.mul_(3)
    return model.eval()


def used(model):
    return {path: m.bits for path, m in model.named_modules() if isinstance(m, QuantizedLinear)}


SIZES = {"0": 128, "2": 256, "4": 192, "5": 24}
QUICK = {"examples": 64, "batch_size": 32, "samples": 8, "evaluations": 60}


@pytest.mark.parametrize("sensitivity", ["kl", "hessian", "noise"])
@pytest.mark.parametrize("solver", ["milp", "dynamic", "evolution"])
def test_the_budget_is_kept_and_the_plan_replays(sensitivity, solver):
    model = perceptron()
    mixed = MixedPrecision(average_bits=5.0, sensitivity=sensitivity, solver=solver, **QUICK)
    plan = Plan.from_json(json.loads(json.dumps(mixed.plan(model, Rows()).to_json())))
    apply(model, plan)
    bits = used(model)
    assert set(bits) == set(SIZES) and sum(SIZES[path] * b for path, b in bits.items()) <= 5.0 * sum(SIZES.values())
    assert len(set(bits.values())) > 1


def test_bytes_are_those_that_are_stored():
    model = perceptron()
    whole = perceptron()
    apply(whole, Quantize(bits=4, activations=None).plan(whole))
    allowed = sum(m.nbytes for m in whole.modules() if isinstance(m, QuantizedLinear))
    apply(model, MixedPrecision(bytes=allowed, **QUICK).plan(model, Rows()))
    stored = sum(m.nbytes for m in model.modules() if isinstance(m, QuantizedLinear))
    assert stored <= allowed
    with pytest.raises(BudgetError, match="cheapest"):
        MixedPrecision(bytes=100, **QUICK).plan(perceptron(), Rows())


def test_the_choice_has_the_least_sum_of_measured_divergences():
    """Each layer alone is quantized by `Quantize` itself, and every choice is enumerated."""
    task, model = Rows(), perceptron()
    x = torch.cat([batch["input"] for batch in task.batches("train", 32, limit=64)])
    with torch.no_grad():
        p = model(x).log_softmax(-1)
    table = {}
    for path, bits in itertools.product(SIZES, (2, 4, 8)):
        alone = perceptron()
        apply(alone, Quantize(bits=bits, activations=None, only=(path,)).plan(alone))
        with torch.no_grad():
            table[path, bits] = float((p.exp() * (p - alone(x).log_softmax(-1))).sum(-1).mean())
    fits = [
        dict(zip(SIZES, choice))
        for choice in itertools.product((2, 4, 8), repeat=4)
        if sum(SIZES[path] * bits for path, bits in zip(SIZES, choice)) <= 3.5 * sum(SIZES.values())
    ]
    best = min(fits, key=lambda choice: sum(table[item] for item in choice.items()))
    plan = MixedPrecision(average_bits=3.5, **QUICK).plan(model, task)
    assert {path: entry["weight"]["bits"] for path, entry in plan.decisions["modules"].items()} == best
    assert plan.decisions["allocation"]["loss"] == pytest.approx(
        sum(table[i] for i in best.items()), rel=1e-3, abs=1e-6
    )


def decoded(path, bits):
    """The weight of a layer that `Quantize` has rounded alone."""
    alone = perceptron()
    apply(alone, Quantize(bits=bits, activations=None, only=(path,)).plan(alone))
    return alone.get_submodule(path).weight


def test_hessian_and_noise_losses_are_their_formulas():
    task, model = Rows(), perceptron()
    batches = list(task.batches("train", 32, limit=64))
    traces = weight_traces(model, task.loss, batches, list(SIZES), 8)
    inputs = {}
    with torch.no_grad(), Tap(model, {f"{path}:input" for path in SIZES}) as tap:
        for path in SIZES:
            inputs[path] = torch.cat([tap(batch)[f"{path}:input"] for batch in batches])
    for kind in ("hessian", "noise"):
        plan = MixedPrecision(average_bits=5, sensitivity=kind, **QUICK).plan(model, task)
        total = 0.0
        for path, entry in plan.decisions["modules"].items():
            weight = model.get_submodule(path).weight.detach()
            change = decoded(path, entry["weight"]["bits"]) - weight
            if kind == "hessian":
                total += max(traces[path], 0) / weight.numel() * float(change.square().sum())
            else:
                noise, energy = ((inputs[path] @ w.T).square().sum() for w in (change, weight))
                total += float(noise / energy)
        assert plan.decisions["allocation"]["loss"] == pytest.approx(total, rel=1e-3, abs=1e-9)


def test_layers_may_stay_in_float_and_static_ranges_are_kept():
    model = perceptron()
    mixed = MixedPrecision((4, 32), average_bits=12, quantize=Quantize(examples=32), **QUICK)
    plan = mixed.plan(model, Rows())
    modules, left = plan.decisions["modules"], plan.decisions["left_alone"]
    assert set(modules) | set(left) == set(SIZES) and left
    assert all(entry["input"]["bits"] == 8 for entry in modules.values())
    assert apply(model, plan)(torch.randn(3, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "average_bits or bytes"),
        ({"average_bits": 4, "bytes": 10}, "average_bits or bytes"),
        ({"average_bits": 0}, "average_bits"),
        ({"average_bits": 4, "bits": ()}, "bits"),
        ({"average_bits": 4, "bits": (4, 9)}, "9"),
        ({"average_bits": 4, "sensitivity": "fisher"}, "sensitivity"),
        ({"average_bits": 4, "solver": "greedy"}, "solver"),
        ({"average_bits": 4, "samples": 0}, "samples"),
        ({"average_bits": 4, "quantize": 4}, "quantize"),
        ({"bytes": "many"}, "bytes"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(settings, word):
    with pytest.raises(UsageError, match=word):
        MixedPrecision(**settings)


def test_noise_is_for_linear_layers_only():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))

    class Images:
        def batches(self, *_, **__):
            yield {"input": torch.randn(2, 1, 4, 4), "labels": torch.tensor([0, 1])}

    with pytest.raises(UsageError, match="linear layers only"):
        MixedPrecision(average_bits=4, sensitivity="noise").plan(model, Images())
    with pytest.raises(UsageError, match="task"):
        MixedPrecision(average_bits=4).plan(model)
