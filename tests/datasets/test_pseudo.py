"""Pseudo-inputs have the moments that they should, and carry nothing else."""

import pytest
import torch

from limbeck.datasets import ClassGaussians, perturbed
from limbeck.errors import UsageError


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_perturbed_inputs_are_the_inputs_and_noise_of_their_own_scale():
    inputs = 3 * torch.randn(40, 5, 6, generator=draw()) + 7
    found = perturbed(inputs, 0.5, draw(1), 40_000)
    noise = found - inputs.repeat(1000, 1, 1)
    scale = 0.5 * ((inputs - inputs.mean()) ** 2).mean().sqrt()
    torch.testing.assert_close(noise.std(), scale, rtol=5e-3, atol=0)
    assert abs(float(noise.mean())) < 0.01 and not torch.equal(found[:40], found[40:80])
    torch.testing.assert_close(found.reshape(1000, 40, 5, 6).mean(0), inputs, atol=0.25, rtol=0)
    assert torch.equal(perturbed(inputs, 0.0), inputs)
    assert torch.equal(perturbed(inputs, 1.0, draw(2)), perturbed(inputs, 1.0, draw(2)))
    assert len(perturbed(inputs, 1.0, count=7)) == 7


def test_draws_have_each_classs_mean_and_covariance():
    labels = torch.arange(300) % 3
    mixing = torch.randn(3, 4, 4, generator=draw())
    inputs = torch.einsum("nd,nde->ne", torch.randn(300, 4, generator=draw(1)), mixing[labels]) + labels[:, None]
    source = ClassGaussians.of(inputs.reshape(300, 2, 2), labels, 4)
    found, classes = source.draw(150_000, generator=draw(2))
    assert found.shape == (150_000, 2, 2) and classes[:4].tolist() == [0, 1, 2, 0]
    for label in range(3):
        own, drawn = inputs[labels == label], found[classes == label].flatten(1)
        size = float(own.T.cov().abs().max())
        torch.testing.assert_close(drawn.mean(0), own.mean(0), atol=0.03 * size**0.5, rtol=0)
        torch.testing.assert_close(drawn.T.cov(), own.T.cov(), atol=0.03 * size, rtol=0)


def test_fewer_directions_keep_the_widest_and_none_the_mean():
    wide = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 1, 0], [0, -1, 0]])
    source = ClassGaussians.of(torch.cat([wide, wide + 5]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), 1)
    torch.testing.assert_close(source.axes.abs(), torch.tensor([[[6.0**0.5, 0, 0]]] * 2))
    means, _ = ClassGaussians.of(wide, torch.zeros(4, dtype=torch.long), 0).draw(2)
    assert means.tolist() == [[0, 0, 0]] * 2
    assert torch.equal(source.draw(6, noise=0.0)[0], source.means.repeat(3, 1))


def test_nonsense_is_refused():
    inputs, labels = torch.randn(6, 3), torch.tensor([0, 0, 0, 1, 1, 1])
    for noise in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="noise"):
            perturbed(inputs, noise)
    with pytest.raises(UsageError, match="float"):
        perturbed(torch.zeros(3, 2, dtype=torch.long), 1.0)
    for count in (0, 2.0, True):
        with pytest.raises(UsageError, match="count"):
            perturbed(inputs, 1.0, count=count)
        with pytest.raises(UsageError, match="count"):
            ClassGaussians.of(inputs, labels, 1).draw(count)
    with pytest.raises(UsageError, match="class 0"):
        ClassGaussians.of(inputs, labels, 3)
    with pytest.raises(UsageError, match="directions=1"):
        ClassGaussians.of(inputs, labels[:2], 1)
    with pytest.raises(UsageError, match="axes"):
        ClassGaussians(torch.zeros(2, 3), torch.zeros(2, 3))
