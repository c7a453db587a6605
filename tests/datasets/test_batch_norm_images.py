"""Images drawn from batch-norm statistics: the loss against loops, and that it falls."""

import pytest
import torch
from torch import nn

from limbeck.datasets import BatchNormMatching, SyntheticSet, noise_images
from limbeck.datasets.batch_norm_images import moments, statistics_loss
from limbeck.errors import UsageError
from limbeck.models import resnet, vit
from limbeck.tasks import CustomTask
from limbeck.training import State, Trainer, TrainingConfig

STATE = State(0, 1, 0.0, 0, torch.device("cpu"))


def network():
    torch.manual_seed(0)
    model = resnet(8, 3, width=4)
    model.train()
    for _ in range(20):
        model(torch.randn(16, 3, 8, 8) * 0.5 + 0.3)
    return model.eval()


def images(count=6):
    start = noise_images(count, (3, 8, 8), torch.Generator().manual_seed(1))
    return SyntheticSet(start, torch.zeros(count, dtype=torch.long))


def naive(model, x, per_image):
    """The loss written anew: forward by hooks, statistics by loops over channels."""
    seen = []
    handles = [
        m.register_forward_pre_hook(
            lambda m, args: seen.append((args[0], m.running_mean, (m.running_var + m.eps) ** 0.5))
        )
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    total = 0.0
    for value, mean, deviation in [(x, torch.zeros(3), torch.ones(3)), *seen]:
        groups = [value[i : i + 1] for i in range(len(value))] if per_image else [value]
        for group in groups:
            for channel in range(value.shape[1]):
                flat = group[:, channel].flatten()
                total = total + (flat.mean() - mean[channel]) ** 2 / len(groups)
                total = total + (flat.var(unbiased=False).sqrt() - deviation[channel]) ** 2 / len(groups)
    return total


@pytest.mark.parametrize("per_image", [False, True])
def test_value_and_gradient_against_loops(per_image):
    model, data = network(), images()
    loss = BatchNormMatching(data, model, per_image).step({}, STATE)["main"]
    (gradient,) = torch.autograd.grad(loss.value, data.images)
    x = data.images.detach().clone().requires_grad_(True)
    expected = naive(model, x, per_image)
    torch.testing.assert_close(loss.value.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, x)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.parts["image"] + loss.parts["inside"], loss.value.detach())


def test_moments_of_vectors_and_images_are_the_usual_ones():
    x = torch.randn(5, 3, 4, 4)
    mean, deviation = moments(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(deviation, x.std((0, 2, 3), unbiased=False))
    assert moments(x, True)[0].shape == (5, 3) and moments(x[..., 0, 0])[0].shape == (3,)
    assert statistics_loss(x, mean, deviation) < 1e-10


def test_training_makes_the_statistics_match_and_leaves_the_network_alone():
    model, data = network(), images(16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    procedure = BatchNormMatching(data, model)
    first = float(procedure.step({}, STATE)["main"].value)
    one = (data.images.detach()[:1], torch.zeros(1, dtype=torch.long))
    task = CustomTask({"train": one, "validation": one, "test": one}, classes=3, version="test")
    config = TrainingConfig(
        steps=60, batch_size=1, learning_rate=0.1, optimizer="adamw", weight_decay=0.0, augment=False
    )
    Trainer(config, folder=None, seed=0, progress=False).run(procedure, task)
    assert float(procedure.step({}, STATE)["main"].value) < 0.1 * first
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted


def test_a_network_without_statistics_is_refused():
    with pytest.raises(UsageError, match="batch normalization"):
        BatchNormMatching(images(), vit(8, 4, 2, depth=1, width=16, heads=2))
