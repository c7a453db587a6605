import pytest
import torch

from limbeck.datasets.imbalance import class_balanced_weights, long_tailed
from limbeck.errors import UsageError
from limbeck.tasks import ImageClassification


def test_class_sizes_fall_exponentially_and_the_first_examples_stay():
    labels = torch.arange(1000) % 10
    kept = long_tailed(labels, 50.0)
    sizes = labels[kept].bincount().tolist()
    assert sizes == [round(100 * 50 ** (-c / 9)) for c in range(10)]
    assert sizes[0] == 100 and sizes[-1] == 2
    assert torch.equal(kept, kept.sort().values)
    for label in range(10):
        own = kept[labels[kept] == label]
        assert torch.equal(own, (labels == label).nonzero().flatten()[: len(own)])


def test_no_imbalance_keeps_the_size_of_the_smallest_class():
    labels = torch.tensor([0, 1, 1, 0, 1, 2, 2])
    assert long_tailed(labels, 1.0).tolist() == [0, 1, 2, 3, 5, 6]
    for imbalance in (0.5, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="imbalance"):
            long_tailed(labels, imbalance)
    with pytest.raises(UsageError, match="without gaps"):
        long_tailed(torch.tensor([0, 2]), 2.0)


def test_weights_are_the_inverse_of_the_effective_number():
    counts, beta = (500, 20, 1), 0.99
    effective = [sum(beta**i for i in range(n)) for n in counts]  # the geometric series
    raw = [1 / e for e in effective]
    assert class_balanced_weights(counts, beta) == pytest.approx([3 * r / sum(raw) for r in raw])
    assert class_balanced_weights(counts, 0.0) == (1.0, 1.0, 1.0)
    inverse = [3 / n / sum(1 / m for m in counts) for n in counts]
    assert class_balanced_weights(counts, 1 - 1e-9) == pytest.approx(inverse, rel=1e-5)
    with pytest.raises(UsageError, match="beta"):
        class_balanced_weights(counts, 1.0)


def test_a_task_with_a_long_tail():
    task, whole = ImageClassification("digits", imbalance=20.0), ImageClassification("digits")
    counts = task.class_counts()
    assert list(counts) == sorted(counts, reverse=True) and counts[0] == pytest.approx(20 * counts[-1], rel=0.1)
    assert sum(counts) == task.size("train") < whole.size("train")
    assert task.class_counts("test") == whole.class_counts("test")
    assert task.digest() != whole.digest() == ImageClassification("digits", imbalance=1.0).digest()
    assert task.describe()["imbalance"] == 20.0
