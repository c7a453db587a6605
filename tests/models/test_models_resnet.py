import pytest
import torch
from torch.nn import functional as F

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import resnet, wide_resnet


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def convolution(channels, width, kernel):
    return channels * width * kernel * kernel


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.47), (56, 0.86), (110, 1.73)])
def test_parameters_are_those_of_the_literature(depth, millions):
    assert round(parameters(resnet(depth)) / 1e6, 2) == millions


@pytest.mark.parametrize("depth, width, millions", [(16, 2, 0.70), (40, 2, 2.26), (40, 1, 0.57), (16, 1, 0.18)])
def test_wide_parameters_are_those_of_the_literature(depth, width, millions):
    # Tian et al., "Contrastive Representation Distillation", ICLR 2020, on CIFAR-100
    assert round(parameters(wide_resnet(depth, width, classes=100)) / 1e6, 2) == millions


@pytest.mark.parametrize("blocks, width, classes, channels", [(1, 16, 10, 3), (3, 8, 7, 1)])
def test_parameters_by_hand(blocks, width, classes, channels):
    total = convolution(channels, width, 3) + 2 * width
    before = width
    for stage in (width, 2 * width, 4 * width):
        total += convolution(before, stage, 3) + (2 * blocks - 1) * convolution(stage, stage, 3) + 4 * blocks * stage
        total += convolution(before, stage, 1) + 2 * stage if stage != before else 0
        before = stage
    total += 4 * width * classes + classes
    assert parameters(resnet(6 * blocks + 2, classes, channels, width)) == total


def test_stages_halve_and_double():
    model = resnet(14, channels=1, width=4).eval()
    x = F.relu(model.bn1(model.conv1(torch.randn(2, 1, 16, 16))))
    for stage, shape in (("layer1", (2, 4, 16, 16)), ("layer2", (2, 8, 8, 8)), ("layer3", (2, 16, 4, 4))):
        x = getattr(model, stage)(x)
        assert x.shape == shape and (x >= 0).all()


def test_a_block_is_its_formula():
    block = resnet(8, width=4).layer2[0].eval()
    x = torch.randn(2, 4, 6, 6)

    def norm(y, layer):
        return F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    y = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), block.bn1))
    y = norm(F.conv2d(y, block.conv2.weight, padding=1), block.bn2)
    short = norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
    assert torch.allclose(block(x), F.relu(y + short), atol=1e-6)
    wide = wide_resnet(10, 1).layer2[0].eval()
    x = torch.randn(2, 16, 6, 6)
    before = F.relu(norm(x, wide.bn1))
    y = F.relu(norm(F.conv2d(before, wide.conv1.weight, stride=2, padding=1), wide.bn2))
    y = F.conv2d(y, wide.conv2.weight, padding=1)
    assert torch.allclose(wide(x), y + F.conv2d(before, wide.shortcut.weight, stride=2), atol=1e-6)


@pytest.mark.parametrize(
    "model", [lambda: resnet(8, 5, 1, 4), lambda: wide_resnet(10, 1, 5, 1, 0.1)], ids=["resnet", "wide"]
)
def test_built_again_from_its_lineage(model):
    model = model().eval()
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert type(again) is type(model) and torch.equal(model(x), again(x)) and model(x).shape == (2, 5)


def test_bad_sizes():
    for depth in (2, 9, 20.0, True):
        with pytest.raises(UsageError, match=r"resnet: depth must be 6n\+2 \(8, 14, 20"):
            resnet(depth)
    with pytest.raises(UsageError, match=r"wide_resnet: depth must be 6n\+4 \(10, 16"):
        wide_resnet(20, 2)
    with pytest.raises(UsageError, match="classes must be a whole number"):
        resnet(8, classes=0)
    with pytest.raises(UsageError, match="dropout"):
        wide_resnet(10, 1, dropout=1.0)
