import math

import pytest
import torch

from limbeck.errors import UsageError
from limbeck.teachers import source_weights, task_similarity
from limbeck.teachers.selection import ranks


def by_hand(features, labels):
    from scipy.stats import pearsonr, spearmanr

    hot = torch.eye(int(labels.max()) + 1, dtype=torch.float64)[labels]
    pairs = [(i, j) for i in range(len(labels)) for j in range(i + 1, len(labels))]
    own, target = ([1 - pearsonr(rows[i], rows[j])[0] for i, j in pairs] for rows in (features.double(), hot))
    return spearmanr([round(d, 12) for d in own], [round(d, 12) for d in target])[0]


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_spearman_of_pearson_distances(seed):
    torch.manual_seed(seed)
    labels = torch.arange(12) % 3
    features = torch.randn(12, 5) + 2 * seed * torch.eye(5)[labels]
    assert task_similarity(features, labels) == pytest.approx(by_hand(features, labels), abs=1e-9)


def test_features_that_are_the_classes_fit_best_and_constant_ones_not_at_all():
    labels = torch.tensor([0, 0, 2, 2, 5, 5])
    assert task_similarity(torch.eye(6)[labels], labels) == pytest.approx(1.0)
    assert task_similarity(torch.ones(6, 4), labels) == 0.0
    torch.manual_seed(0)
    assert abs(task_similarity(torch.randn(60, 20), torch.arange(60) % 3)) < 0.1
    for wrong in (torch.ones(6), torch.ones(5, 4)):
        with pytest.raises(UsageError, match="task_similarity"):
            task_similarity(wrong, labels)
    with pytest.raises(UsageError, match="two classes"):
        task_similarity(torch.ones(6, 4), torch.zeros(6, dtype=torch.long))


def test_ranks_of_equal_values_are_shared():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 7.0])).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_weights_are_normalized_powers_of_the_scores():
    assert source_weights([0.2, 0.6, 0.2]) == pytest.approx((0.2, 0.6, 0.2))
    assert source_weights([0.1, 0.3, -0.5], 2.0) == pytest.approx((0.1, 0.9, 0.0))
    assert source_weights([0.1, 0.3, -0.5], 0.0) == pytest.approx((0.5, 0.5, 0.0))
    assert source_weights([0.1, 0.3], 400.0) == pytest.approx((0.0, 1.0))
    assert source_weights([-0.1, 0.0]) == (0.5, 0.5)
    for wrong in ([], [math.nan]):
        with pytest.raises(UsageError, match="source_weights"):
            source_weights(wrong)
