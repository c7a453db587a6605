"""Evolution on functions whose optimum is known; the proxy against loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import UsageError
from limbeck.models import cnn, resnet
from limbeck.search import TeacherSimilarity, evolve
from limbeck.search.proxies import gaussian_, relation_distance, semantic_distance


def bits(draws):
    return tuple(torch.randint(2, (16,), generator=draws).tolist())


def flip(candidate, draws):
    at = int(torch.randint(16, (), generator=draws))
    return (*candidate[:at], 1 - candidate[at], *candidate[at + 1 :])


def test_evolution_climbs_and_counts_its_evaluations():
    calls = []

    def score(candidate):
        calls.append(candidate)
        return sum(candidate)

    found = evolve(bits, flip, score, evaluations=400, population=20, tournament=5, seed=1)
    assert found.score >= 15 and sum(found.best) == found.score
    assert len(calls) == len(found.seen) == 400 and [c for c, _ in found.seen] == calls
    assert found.score == max(value for _, value in found.seen)
    again = evolve(bits, flip, sum, evaluations=400, population=20, tournament=5, seed=1)
    assert again == found != evolve(bits, flip, sum, evaluations=400, population=20, tournament=5, seed=2)


def test_the_oldest_dies_even_if_it_is_the_best():
    """One brilliant first candidate: after a whole population of children nobody descends from it any more."""
    numbers = iter(range(1000))
    parents = []

    def mutate(candidate, draws):
        parents.append(candidate)
        return next(numbers)

    found = evolve(lambda draws: next(numbers), mutate, lambda c: 100.0 if c == 0 else 0.0, evaluations=40, population=5,
                   tournament=5)  # fmt: skip
    assert parents[0] == 0 and 0 not in parents[1:]
    assert found.best == 0  # it is remembered all the same


def test_the_budget_is_kept_and_nan_is_the_worst():
    found = evolve(bits, flip, sum, evaluations=100, population=10, tournament=3, allowed=lambda c: sum(c) <= 9)
    assert found.score <= 9 and all(sum(c) <= 9 for c, _ in found.seen)
    lost = evolve(bits, flip, lambda c: math.nan if c[0] else sum(c), evaluations=50, population=10, tournament=3)
    assert lost.best[0] == 0
    with pytest.raises(UsageError, match="allowed"):
        evolve(bits, flip, sum, evaluations=10, population=5, tournament=2, allowed=lambda c: False)
    with pytest.raises(UsageError, match="tournament"):
        evolve(bits, flip, sum, evaluations=10, population=5, tournament=6)


def test_distances_are_the_sums_over_classes_channels_and_pairs():
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    total = 0.0
    for c in range(3):
        for i in range(5):
            rows = []
            for g in (a[c], b[c]):
                row = torch.stack([g[i] * g[j] for j in range(5)])
                rows.append(row / row.norm())
            total += float((rows[0] - rows[1]).square().sum())
    assert float(semantic_distance(a, b)) == pytest.approx(total / 15, rel=1e-5)
    x, y, total = torch.randn(4, 3), torch.randn(4, 6), 0.0
    for i in range(4):
        rows = []
        for f in (x, y):
            row = torch.stack([f[i] @ f[j] for j in range(4)])
            rows.append(row / row.norm())
        total += float((rows[0] - rows[1]).square().sum())
    assert float(relation_distance(x, y)) == pytest.approx(total / 16, rel=1e-5)


def test_the_score_is_of_gaussian_weights_and_the_models_stay():
    batch = {"pixel_values": torch.randn(6, 1, 8, 8), "labels": torch.arange(6) % 3}
    student, teacher = cnn((4, 16), classes=3, channels=1), resnet(8, 3, 1, width=4)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    both = TeacherSimilarity().score(student, teacher, batch, seed=5)
    parts = [
        TeacherSimilarity(**{name: False}).score(student, teacher, batch, seed=5) for name in ("semantic", "relation")
    ]
    assert both == pytest.approx(sum(parts), rel=1e-5) and both < 0
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    seen = []
    for model in (student, teacher):
        model = gaussian_(model, torch.Generator().manual_seed(5)).train()
        features = {}
        handle = model.fc.register_forward_pre_hook(lambda _, args, features=features: features.update(x=args[0]))
        model.zero_grad()
        F.cross_entropy(model(batch["pixel_values"]), batch["labels"]).backward()
        handle.remove()
        seen.append((features["x"].detach(), model.fc.weight.grad))
    expected = semantic_distance(seen[0][1], seen[1][1]) + relation_distance(seen[0][0], seen[1][0])
    assert both == pytest.approx(-float(expected), rel=1e-4)


def test_a_twin_of_the_teacher_scores_zero_the_best():
    batch = {"pixel_values": torch.randn(6, 1, 8, 8), "labels": torch.arange(6) % 3}
    teacher = cnn((4, 16), classes=3, channels=1)
    assert TeacherSimilarity().score(cnn((4, 16), classes=3, channels=1), teacher, batch) == pytest.approx(0, abs=1e-6)
    assert TeacherSimilarity().score(cnn((8, 16), classes=3, channels=1), teacher, batch) < -1e-4


def test_weights_are_drawn_from_a_unit_gaussian():
    model = gaussian_(
        nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 32)), torch.Generator().manual_seed(0)
    )
    for at in (0, 2):
        assert float(model[at].weight.detach().std()) == pytest.approx(1, abs=0.05)
        assert not bool(model[at].bias.any())
    assert bool((model[1].weight == 1).all())


def test_nonsense_is_refused():
    batch = {"pixel_values": torch.randn(6, 1, 8, 8), "labels": torch.arange(6) % 3}
    with pytest.raises(UsageError, match="nothing to compare"):
        TeacherSimilarity(semantic=False, relation=False)
    with pytest.raises(UsageError, match="last width"):
        TeacherSimilarity().score(cnn((4, 8), classes=3, channels=1), cnn((4, 16), classes=3, channels=1), batch)
