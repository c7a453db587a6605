"""Distribution metrics against naive sums and closed forms."""

import math

import pytest
import scipy.linalg
import torch

from limbeck.diffusion import frechet_distance, maximum_mean_discrepancy, mode_coverage
from limbeck.errors import UsageError


def test_mmd_equals_a_double_loop():
    x, y, widths = torch.randn(5, 2), torch.randn(7, 2) + 1, (0.5, 2.0)

    def k(a, b):
        return sum(math.exp(-((a - b) ** 2).sum().item() / (2 * h * h)) for h in widths) / len(widths)

    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / 42
    xy = sum(k(a, b) for a in x for b in y) / 35
    assert maximum_mean_discrepancy(x, y, widths).item() == pytest.approx(xx + yy - 2 * xy, abs=1e-5)


def test_mmd_tells_equal_from_different():
    x, y = torch.randn(2000, 2), torch.randn(2000, 2)
    assert abs(maximum_mean_discrepancy(x, y).item()) < 2e-3 < maximum_mean_discrepancy(x, 1.3 * y).item()


def test_frechet_equals_the_matrix_root():
    x, y = torch.randn(300, 4) @ torch.randn(4, 4), torch.randn(400, 4) @ torch.randn(4, 4) + 1
    cx, cy = x.double().T.cov().numpy(), y.double().T.cov().numpy()
    root = scipy.linalg.sqrtm(cx @ cy).real
    expected = (x.mean(0) - y.mean(0)).square().sum().item() + (cx + cy - 2 * root).trace()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_frechet_of_one_dimension_is_mean_and_deviation():
    x = torch.randn(500, 1)
    assert frechet_distance(x, 3 * x + 2) == pytest.approx(
        ((3 * x + 2).mean() - x.mean()).item() ** 2 + 4 * x.var().item(), rel=1e-4
    )


def test_mode_coverage_counts():
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    samples = torch.tensor([[0.0, 0.05], [0.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
    found = mode_coverage(samples, centres, radius=0.1)
    assert found["coverage"] == 0.5 and found["precision"] == 0.75
    p = torch.tensor([2 / 3, 1 / 3])
    assert found["balance"] == pytest.approx(-(p * p.log()).sum().item() / math.log(4))
    assert mode_coverage(centres, centres, 0.1)["balance"] == pytest.approx(1.0)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError):
        maximum_mean_discrepancy(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(UsageError):
        frechet_distance(torch.zeros(1, 2), torch.zeros(4, 2))
