"""Growing and aligning classifiers against plain formulas."""

import math

import pytest
import torch
from torch import nn

from limbeck.conversion import AlignClassifier, GrowClassifier
from limbeck.conversion.classifier import alignment
from limbeck.errors import ArtifactError, UsageError
from limbeck.models import cnn
from limbeck.plan import Plan, apply


def model(classes=5, bias=True):
    torch.manual_seed(0)
    return cnn((4, 6), classes=classes, bias=bias).eval()


@pytest.mark.parametrize("norm", [1, 2])
def test_gamma_is_the_ratio_of_mean_row_norms(norm):
    weight = torch.randn(5, 3)
    rows = [sum(abs(v) ** norm for v in row) ** (1 / norm) for row in weight.tolist()]
    assert alignment(weight, 3, norm) == pytest.approx((sum(rows[:3]) / 3) / (sum(rows[3:]) / 2), rel=1e-6)
    assert alignment(weight, 3, norm, largest=0.2) == 0.2


def test_aligned_rows_have_one_average_norm_and_order_within_a_group_stays():
    found = model()
    x = torch.randn(7, 3, 8, 8)
    before = found(x)
    plan = AlignClassifier(3).plan(found)
    after = apply(found, plan)(x)
    norms = found.fc.weight.norm(dim=1)
    torch.testing.assert_close(norms[:3].mean(), norms[3:].mean())
    torch.testing.assert_close(after[:, :3], before[:, :3])
    torch.testing.assert_close(after[:, 3:], plan.decisions["data"]["gamma"] * before[:, 3:])


def test_rows_of_zeros_are_left_alone():
    assert alignment(torch.zeros(4, 2), 2) == 1.0
    assert math.isfinite(alignment(torch.tensor([[1.0, 0], [0, 0]]), 1))


@pytest.mark.parametrize("bias", [True, False])
def test_growing_keeps_the_old_logits_and_draws_the_new_rows(bias):
    found = model(bias=bias)
    x = torch.randn(7, 3, 8, 8)
    before = found(x)
    apply(found, GrowClassifier(8, seed=1).plan(found))
    assert found.fc.out_features == 8 and (found.fc.bias is not None) == bias
    torch.testing.assert_close(found(x)[:, :5], before)
    fresh = found.fc.weight[5:].detach()
    assert 0.3 / math.sqrt(6) < float(fresh.abs().max()) <= 1 / math.sqrt(6)
    again, other = (apply(model(bias=bias), GrowClassifier(8, seed=seed).plan(model(bias=bias))) for seed in (1, 2))
    assert torch.equal(again.fc.weight, found.fc.weight) and not torch.equal(other.fc.weight, found.fc.weight)


def test_nonsense_is_refused():
    for make, named in (
        (lambda: AlignClassifier(0), "old=0"),
        (lambda: AlignClassifier(1, norm=3), "norm"),
        (lambda: AlignClassifier(1, largest=0), "largest"),
        (lambda: GrowClassifier(0), "classes"),
        (lambda: AlignClassifier(5).plan(model()), "no new class"),
        (lambda: GrowClassifier(4).plan(model()), "fewer"),
        (lambda: GrowClassifier(9, path="head").plan(model()), "fc"),
    ):
        with pytest.raises(UsageError, match=named):
            make()
    with pytest.raises(ArtifactError):
        apply(nn.Sequential(nn.Linear(2, 2)), Plan("grow_classifier", {"path": "fc", "classes": 3, "seed": 0}))
