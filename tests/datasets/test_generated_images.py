"""Images of a trained generator, and swinging convolutions: against computations written out anew."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.datasets import BatchNormMatching, GeneratedSet
from limbeck.datasets.generated_images import Swinging, swinging, swung
from limbeck.errors import UsageError
from limbeck.models import resnet
from limbeck.training import State

STATE = State(0, 1, 0.0, 0, torch.device("cpu"))


def network():
    torch.manual_seed(0)
    model = resnet(8, 3, width=4)
    for _ in range(10):
        model(torch.randn(16, 3, 8, 8) * 0.5 + 0.3)
    return model.eval()


def made(**changes):
    torch.manual_seed(1)
    return GeneratedSet(6, (3, 8, 8), **{"latent": 5, "widths": (7, 4), **changes})


def plain_norm(x, weight=None, bias=None):
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x if weight is None else x * weight[:, None, None] + bias[:, None, None]


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_images_are_those_of_the_layers_written_out():
    found = made()
    first, conv, second, last = (found.layers[i] for i in (0, 2, 3, 6))
    z = found.latents * 10
    x = (z @ found.linear.weight.T + found.linear.bias).view(6, 7, 2, 2)
    x = F.conv2d(F.pad(doubled(plain_norm(x, first.weight, first.bias)), (1,) * 4), conv.weight, conv.bias)
    x = plain_norm(x, second.weight, second.bias)
    x = torch.where(x > 0, x, 0.2 * x)
    x = F.conv2d(F.pad(doubled(x), (1,) * 4), last.weight, last.bias).tanh()
    torch.testing.assert_close(found.images, plain_norm(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.eval().images, plain_norm(x), rtol=1e-5, atol=1e-5)
    assert z.std().item() == pytest.approx(1.0, abs=0.3)


def test_latents_move_as_much_faster_as_they_are_told():
    found = made(latent_rate=4.0)
    before = (4.0 * found.latents).detach().clone()
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    BatchNormMatching(found, network()).step({}, STATE)["main"].value.backward()
    optimizer.step()
    moved = (4.0 * found.latents - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 4e-2), rtol=2e-3, atol=1e-4)
    assert all(p.grad is not None for p in found.parameters())


def test_a_swung_input_is_the_reflected_one_cut_out():
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    rows, columns = [1, 0, 1, 2, 3, 2], [1, 0, 1, 2, 3, 4, 3]
    for down in range(3):
        for right in range(3):
            expected = x[:, :, rows[down : down + 4]][..., columns[right : right + 5]]
            assert torch.equal(swung(x, down, right), expected)
    assert torch.equal(swung(x, 1, 1), x)


def test_only_strided_convolutions_swing_and_only_in_the_copy():
    model = network()
    copied = swinging(model)
    assert not any(isinstance(m, Swinging) for m in model.modules())
    at = {path for path, m in copied.named_modules() if isinstance(m, Swinging)}
    assert at == {"layer2.0.conv1", "layer2.0.shortcut.0", "layer3.0.conv1", "layer3.0.shortcut.0"}
    x = torch.randn(2, 3, 8, 8)
    convolution = copied.layer2[0].conv1
    still = model.layer2[0].conv1
    with torch.no_grad():
        middle = model.bn1(model.conv1(x))
        allowed = [still(swung(middle, down, right)) for down in range(3) for right in range(3)]
        seen = {
            next(i for i, other in enumerate(allowed) if torch.equal(found, other))
            for found in (convolution(middle) for _ in range(60))
        }
    assert len(seen) >= 7


@pytest.mark.parametrize("per_image", [False, True, "input"])
def test_the_statistics_of_the_image_may_be_those_of_each(per_image):
    model, found = network(), made()
    loss = BatchNormMatching(found, model, per_image).step({}, STATE)["main"]
    x, seen = found.images, []
    handles = [
        m.register_forward_pre_hook(lambda m, a: seen.append((a[0], m)))
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    model(x)
    for handle in handles:
        handle.remove()

    def naive(value, mean, deviation, each):
        parts = list(value.unbind()) if each else [value.transpose(0, 1).flatten(1)]
        total = 0.0
        for part in parts:
            for channel, m, d in zip(part, mean, deviation):
                flat = channel.flatten()
                total += ((flat.mean() - m) ** 2 + (flat.var(unbiased=False).sqrt() - d) ** 2) / len(parts)
        return total

    expected = naive(x, [0.0] * 3, [1.0] * 3, bool(per_image))
    for value, norm in seen:
        expected = expected + naive(value, norm.running_mean, (norm.running_var + norm.eps).sqrt(), per_image is True)
    torch.testing.assert_close(loss.value, expected, rtol=1e-4, atol=1e-5)


def test_matching_through_swinging_convolutions_leaves_the_network_alone():
    model, found = network(), made()
    before = copy.deepcopy(model.state_dict())
    procedure = BatchNormMatching(found, model, "input", swing=True)
    torch.manual_seed(3)
    values = {round(float(procedure.step({}, STATE)["main"].value), 5) for _ in range(8)}
    assert len(values) > 1 and procedure.describe()["swing"] is True
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [{"count": 1}, {"shape": (3, 6, 8)}, {"latent": 0}, {"widths": (0, 4)}, {"latent_rate": 0.0}],
)
def test_sizes_that_do_not_fit_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        GeneratedSet(**{"count": 4, "shape": (3, 8, 8), **settings})


def test_other_statistics_are_refused():
    with pytest.raises(UsageError, match="per_image='image'"):
        BatchNormMatching(made(), network(), "image")
