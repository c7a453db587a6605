"""Procedures over views, compared with steps computed by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_examples import TinyTask

from limbeck.datasets.augment import Rotations, StrongView
from limbeck.errors import UsageError
from limbeck.objectives import (
    CrossEntropy,
    MutualInformation,
    OnSignal,
    PriorAdjusted,
    Scheduled,
    SoftTargets,
    WhereCorrect,
)
from limbeck.training import Distil, OnViews, Supervised, Trainer, TrainingConfig, TwoViews

CONFIG = TrainingConfig(steps=4, batch_size=8, learning_rate=0.05, optimizer="sgd")
COUNTS = (8, 4, 2)


class Experts(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, pixel_values):
        x = self.trunk(pixel_values)
        return sum(head(x) for head in self.heads) / 2


def batch(epoch=3):
    return {**next(TinyTask().batches("train", 8)), "epoch": epoch}


def test_two_views_is_the_loss_of_mdcs():
    strengths, model, given = (-0.5, 2.5), Experts(), batch()
    diversity = sum(
        (OnSignal(f"heads.{m}", PriorAdjusted(CrossEntropy(), COUNTS, s)) for m, s in enumerate(strengths[1:], 1)),
        OnSignal("heads.0", PriorAdjusted(CrossEntropy(), COUNTS, strengths[0])) + 0.0 * CrossEntropy(),
    )
    held = [PriorAdjusted(WhereCorrect(SoftTargets(1.0)), COUNTS, s) for s in strengths]
    consistency = sum(
        (0.6 * Scheduled(OnSignal(f"heads.{m}", h, f"heads.{m}"), ramp=20) for m, h in enumerate(held[1:], 1)),
        0.6 * Scheduled(OnSignal("heads.0", held[0], "heads.0"), ramp=20),
    )
    strong = StrongView()
    procedure = TwoViews(model, diversity, consistency, strong)
    torch.manual_seed(5)
    found = procedure.step(given, None)["main"]
    torch.manual_seed(5)
    views = torch.cat([given["pixel_values"], strong(given)["pixel_values"]])
    features, labels = model.trunk(views), given["labels"]
    expected = 0.0
    for head, strength in zip(model.heads, strengths):
        z = head(features) + strength * torch.tensor(COUNTS, dtype=torch.float32).log()
        expected = expected + F.cross_entropy(z, torch.cat([labels, labels]))
        weak, hard = z[:8].detach(), z[8:]
        right = weak.argmax(-1) == labels
        assert bool(right.any())
        kl = F.kl_div(hard[right].log_softmax(-1), weak[right].softmax(-1), reduction="batchmean")
        expected = expected + 0.6 * min(3 / 20, 1) * kl
    torch.testing.assert_close(found.value, expected)
    weights = list(model.parameters())
    for one, other in zip(torch.autograd.grad(found.value, weights, retain_graph=True), torch.autograd.grad(expected, weights)):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert sum(name.startswith("consistency") for name in found.parts) == 2


def test_a_strong_view_that_changes_nothing_leaves_no_inconsistency():
    objective = CrossEntropy()
    with_, without = (TwoViews(Experts(), objective, c, dict) for c in (SoftTargets(1.0), None))
    losses = [procedure.step(batch(), None)["main"] for procedure in (with_, without)]
    torch.testing.assert_close(losses[0].value, losses[1].value)


def test_on_views_trains_as_on_a_task_of_changed_batches():
    class Turned(TinyTask):
        def batches(self, *args, **settings):
            for given in super().batches(*args, **settings):
                yield {**given, "pixel_values": given["pixel_values"].flip(3)}

    def flip(given):
        return {**given, "pixel_values": given["pixel_values"].flip(3)}

    models = Experts(), Experts()
    history = Trainer(CONFIG, progress=False).run(OnViews(Supervised(models[0], CrossEntropy()), flip), TinyTask())
    Trainer(CONFIG, progress=False).run(Supervised(models[1], CrossEntropy()), Turned())
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values()):
        torch.testing.assert_close(one, other)
    assert history.samples == 4 * 8


def test_rotations_run_and_upright_labels_alone_count():
    model, given = Experts().eval(), batch()
    procedure = OnViews(Distil(model, None, CrossEntropy()), Rotations())
    found = procedure.step(given, None)["main"].value
    torch.testing.assert_close(found, F.cross_entropy(model(given["pixel_values"]), given["labels"]))
    assert "Rotations" in str(procedure.describe()) and procedure.model() is model


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="change"):
        OnViews(Supervised(Experts(), CrossEntropy()), None)
    with pytest.raises(UsageError, match="strong"):
        TwoViews(Experts(), CrossEntropy(), None, "strong")
    with pytest.raises(UsageError):
        TwoViews(Experts(), CrossEntropy(), MutualInformation(), dict).prepare(batch(), torch.device("cpu"))
