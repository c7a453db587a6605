"""The analytic mixture against autograd and brute force."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from limbeck.diffusion import GaussianMixture, MixtureDenoiser, NoiseSchedule, grid, ring
from limbeck.errors import UsageError

MIXTURE = GaussianMixture(((0.0, 1.0), (2.0, -1.0), (-1.0, 0.5)), 0.3, weights=(1.0, 2.0, 1.0), labels=(0, 0, 1))
TIMES = torch.tensor([5, 300, 600, 950])


def _at(condition=None):
    x = torch.randn(4, 2, dtype=torch.float64)
    return x, NoiseSchedule().at(TIMES, x), condition


def test_density_is_the_sum_of_normals():
    x, alpha_bar, _ = _at()
    for row in range(4):
        total = 0.0
        for mean, weight in zip(MIXTURE.means, (0.25, 0.5, 0.25)):
            variance = alpha_bar[row] * 0.3**2 + 1 - alpha_bar[row]
            normal = MultivariateNormal(alpha_bar[row].sqrt() * torch.tensor(mean).double(), variance * torch.eye(2))
            total += weight * normal.log_prob(x[row]).exp()
        assert MIXTURE.log_density(x, alpha_bar)[row].exp().item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("condition", [None, torch.tensor([0, 1, -1, 0])])
def test_score_is_the_gradient_of_the_log_density(condition):
    x, alpha_bar, _ = _at()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_density(x, alpha_bar, condition).sum(), x)
    assert torch.allclose(MIXTURE.score(x.detach(), alpha_bar, condition), gradient, atol=1e-5)


def test_denoiser_is_the_posterior_mean():
    """E[x_0 | x_t] by importance sampling from the prior."""
    schedule, clean = NoiseSchedule(), MIXTURE.sample(400_000, torch.Generator().manual_seed(0))[0]
    x, t = torch.tensor([[0.4, 0.1]]), torch.tensor([500])
    alpha_bar = schedule.at(t, x)
    log_weight = -(x - alpha_bar.sqrt() * clean).square().sum(-1) / (2 * (1 - alpha_bar[0]))
    expected = (log_weight.softmax(0)[:, None] * clean).sum(0)
    assert torch.allclose(MixtureDenoiser(MIXTURE, schedule)(x, t)[0], expected, atol=0.01)


def test_samples_follow_the_weights_and_a_condition_keeps_to_its_class():
    points, labels = MIXTURE.sample(20_000, torch.Generator().manual_seed(0))
    assert (labels == 1).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert points[labels == 1].mean(0).tolist() == pytest.approx([-1.0, 0.5], abs=0.02)
    only = GaussianMixture(MIXTURE.means[2:], 0.3)
    x, alpha_bar, _ = _at()
    ones = torch.ones(4, dtype=torch.long)
    assert torch.allclose(MIXTURE.denoise(x, alpha_bar, ones), only.denoise(x, alpha_bar), atol=1e-6)


def test_shapes_of_the_usual_mixtures():
    assert len(ring(8).means) == 8 and len(grid(5).means) == 25
    assert torch.allclose(grid(3).centres.mean(0), torch.zeros(2), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"means": ()},
        {"means": ((0.0,), (1.0, 2.0))},
        {"deviation": 0.0},
        {"weights": (1.0,)},
        {"weights": (1.0, 0.0)},
        {"labels": (0,)},
    ],
)
def test_bad_mixtures_are_refused(settings):
    with pytest.raises(UsageError):
        GaussianMixture(**{"means": ((0.0,), (1.0,)), "deviation": 0.1, **settings})
