import pytest
import torch

from limbeck.errors import DataError, UsageError
from limbeck.measure.calibration import calibration_error, reliability


def naive(logits, labels, bins):
    probabilities = torch.softmax(logits.double(), -1)
    groups = {b: [] for b in range(bins)}
    for row, label in zip(probabilities, labels):
        confidence, predicted = row.max().item(), row.argmax().item()
        for b in range(bins):
            if b / bins < confidence <= (b + 1) / bins:
                groups[b].append((confidence, predicted == label.item()))
    error = 0.0
    for members in groups.values():
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(r for _, r in members) / len(members)
            error += len(members) / len(labels) * abs(accuracy - confidence)
    return error, [len(members) for members in groups.values()]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equals_the_naive_computation(bins):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 5, generator=generator)
    labels = torch.randint(0, 5, (200,), generator=generator)
    error, counts = naive(logits, labels, bins)
    made = reliability(logits, labels, bins)
    assert made["error"] == pytest.approx(error, abs=1e-12)
    assert [row["count"] for row in made["bins"]] == counts
    assert calibration_error(logits, labels, bins) == made["error"]


def test_closed_form():
    # four examples of confidence 0.8 of which three are right: |0.75 - 0.8|
    logits = torch.log(torch.tensor([[0.8, 0.2]])).repeat(4, 1).double()
    assert calibration_error(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.05)


def test_bins_meet_and_certain_predictions_count():
    made = reliability(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.tensor([0, 0]), 10)
    assert made["bins"][-1] == {"low": 0.9, "high": 1.0, "confidence": 1.0, "accuracy": 0.5, "count": 2}
    assert made["error"] == 0.5
    for left, right in zip(made["bins"], made["bins"][1:]):
        assert left["high"] == right["low"]


def test_a_bin_contains_its_upper_edge():
    made = reliability(torch.zeros(1, 2), torch.tensor([0]), 10)  # a confidence of exactly 0.5
    assert [row["count"] for row in made["bins"]].index(1) == 4


def test_bad_input():
    with pytest.raises(DataError):
        reliability(torch.zeros(0, 3), torch.zeros(0))
    with pytest.raises(UsageError, match="labels"):
        reliability(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(UsageError, match="bins"):
        reliability(torch.zeros(4, 3), torch.zeros(4), 0)
