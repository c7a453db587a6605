"""Linear probes and distances between weights, against naive ones."""

import copy

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from limbeck.errors import UsageError
from limbeck.measure import linear_probe, parameter_distance


def examples(count, seed):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=draw)
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9)) * 2
    return centres[labels] * torch.tensor([1.0, 5, 1, 1, 0.1, 1]) + 3 * torch.randn(count, 6, generator=draw), labels


@pytest.mark.parametrize("penalty", [1e-2, 1.0])
def test_the_probe_is_a_ridge_classifier_of_standardized_features(penalty):
    (x, y), (other, answers) = examples(80, 0), examples(500, 1)
    scaler = StandardScaler().fit(x.double().numpy())
    # targets of -1 and 1 in place of 0 and 1 change neither the penalty's weight nor the order of the scores
    reference = RidgeClassifier(alpha=penalty * len(x)).fit(scaler.transform(x.double().numpy()), y.numpy())
    expected = reference.score(scaler.transform(other.double().numpy()), answers.numpy())
    found = linear_probe(x, y, other, answers, penalty)
    assert found == pytest.approx(expected) and 0.3 < found < 1
    scaled = linear_probe(x * 100 + 7, y, other * 100 + 7, answers, penalty)
    assert scaled == pytest.approx(found, abs=0.005)


def test_a_feature_that_never_changes_does_no_harm():
    (x, y), (other, answers) = examples(80, 0), examples(100, 1)
    plain = linear_probe(x, y, other, answers)
    ones = [torch.cat([f, torch.ones(len(f), 1)], 1) for f in (x, other)]
    assert linear_probe(ones[0], y, ones[1], answers) == plain


def test_what_does_not_fit_is_refused():
    (x, y), (other, answers) = examples(8, 0), examples(9, 1)
    with pytest.raises(UsageError, match="tested"):
        linear_probe(x, y, other[:, :3], answers)
    with pytest.raises(UsageError, match="labels"):
        linear_probe(x, y[:3], other, answers)
    with pytest.raises(UsageError, match="penalty=0"):
        linear_probe(x, y, other, answers, 0)


def test_distance_of_parameters():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    second = copy.deepcopy(first)
    assert parameter_distance(first.named_parameters(), second.named_parameters()) == 0
    with torch.no_grad():
        second[0].weight += 0.5
        second[1].bias -= 1.0
    expected = (6 * 0.25 + 2 * 1.0) ** 0.5
    assert parameter_distance(first.named_parameters(), second.named_parameters()) == pytest.approx(expected)
    shared = [pair for pair in second.named_parameters() if pair[0] != "1.bias"]
    assert parameter_distance(first.named_parameters(), shared) == pytest.approx(1.5**0.5)
    with pytest.raises(UsageError, match="in common"):
        parameter_distance(first.named_parameters(), [("other", torch.ones(1))])
