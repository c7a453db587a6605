"""Herding against an exhaustive greedy search."""

import pytest
import torch

from limbeck.datasets.herding import herding
from limbeck.errors import UsageError


@pytest.mark.parametrize("normalize", [True, False])
def test_every_choice_brings_the_mean_closest(normalize):
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    points = features.double()
    points = points / points.norm(dim=1, keepdim=True) if normalize else points
    mean, chosen = points.mean(0), []
    for _ in range(5):
        rest = [i for i in range(12) if i not in chosen]
        chosen.append(min(rest, key=lambda i: float((mean - points[[*chosen, i]].mean(0)).norm())))
    assert herding(features, 5, normalize).tolist() == chosen
    assert herding(features, 3, normalize).tolist() == chosen[:3]


def test_all_of_them_is_a_permutation():
    assert sorted(herding(torch.randn(6, 2), 6).tolist()) == list(range(6))


@pytest.mark.parametrize("count", [0, 7])
def test_nonsense_is_refused(count):
    with pytest.raises(UsageError, match="count"):
        herding(torch.randn(6, 2), count)
