"""Two heads that answer together: the mixture in plain floats, and the choice of its weights."""

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.models.dual_head import DualHead, choose_mixture, mixture
from limbeck.objectives import CrossEntropy, OnSignal, SoftTargets
from limbeck.signals import Signals, capture


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 0.5), (0.3, 2.0), (0.5, 1.0), (1.0, 4.0)])
def test_the_answer_is_the_mixture_of_probabilities(share, temperature):
    torch.manual_seed(0)
    head, x = DualHead(6, 4, share, temperature), torch.randn(5, 6)
    expected = share * head.labels(x).softmax(-1) + (1 - share) * (head.teacher(x) / temperature).softmax(-1)
    torch.testing.assert_close(head(x).exp(), expected)


def test_extreme_logits_give_no_nan():
    far = 1e4 * torch.randn(5, 4).sign()
    for share in (0.0, 0.5, 1.0):
        found = mixture(far, -far, share, 1.0)
        assert not bool(found.isnan().any())


def test_each_objective_trains_its_own_head():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 6), DualHead(6, 4))
    batch = {"x": torch.randn(5, 3), "labels": torch.tensor([0, 1, 2, 3, -100])}
    objectives = {
        "labels": OnSignal("1.labels", CrossEntropy()),
        "teacher": OnSignal("1.teacher", SoftTargets(temperature=2.0, positions="all")),
    }
    for name, objective in objectives.items():
        model.zero_grad()
        signals = capture(model, batch, {f"1.{name}"})
        objective(signals, Signals({"logits": torch.randn(5, 4)}), batch).value.backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0} == {
            "0.weight",
            "0.bias",
            f"1.{name}.weight",
            f"1.{name}.bias",
        }


def test_the_chosen_mixture_is_the_best_of_the_grid():
    torch.manual_seed(1)
    truth = torch.randint(0, 3, (200,))
    good = 4 * torch.nn.functional.one_hot(truth, 3).float() + 2 * torch.randn(200, 3)
    assert choose_mixture(good, 20 * torch.randn(200, 3), truth)[0] > 0.5
    assert choose_mixture(20 * torch.randn(200, 3), good, truth)[0] < 0.5
    chosen = choose_mixture(good, good.roll(1, 0), truth)
    best = max(
        ((mixture(good, good.roll(1, 0), a / 20, b).argmax(-1) == truth).double().mean().item())
        for a in range(21)
        for b in (0.5, 1.0, 2.0, 4.0)
    )
    found = (mixture(good, good.roll(1, 0), *chosen).argmax(-1) == truth).double().mean().item()
    assert found == best
    same = torch.nn.functional.one_hot(truth, 3).float()
    assert choose_mixture(same, same, truth) == (0.5, 1.0)  # of equals the middle


@pytest.mark.parametrize("wrong", [{"width": 0}, {"classes": 0}, {"share": 1.5}, {"temperature": 0.0}])
def test_refusals(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DualHead(**{"width": 4, "classes": 3, **wrong})
