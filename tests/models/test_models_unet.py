"""The U-Net."""

import pytest
import torch
from torch.nn import functional as F

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import unet
from limbeck.signals import capture


@pytest.mark.parametrize(("stride", "size"), [(1, (12, 16)), (2, (13, 10)), (4, (16, 24))])
def test_logits_have_the_image_size_and_the_lineage_builds_it_again(stride, size):
    model = unet((4, 6, 8), classes=5, channels=3, layers=2, stride=stride).eval()
    x = torch.randn(2, 3, *size)
    found = capture(model, {"pixel_values": x}, {"logits", "head", "up.0", "down.2"})
    assert found["logits"].shape == (2, 5, *size)
    small = tuple(-(-side // stride) for side in size)
    assert found["head"].shape == (2, 5, *small) and found["up.0"].shape == (2, 4, *small)
    assert found["down.2"].shape == (2, 8, *((side + 3) // 4 for side in small))
    resized = F.interpolate(found["head"], size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found["logits"], resized)
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


def test_a_place_sees_the_deepest_level_and_its_own_skip():
    model = unet((4, 6), classes=2, layers=1).eval()
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    maps = [model.down[0](x)]
    maps.append(model.down[1](F.max_pool2d(maps[0], 2)))
    upper = F.interpolate(maps[1], (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), model.head(model.up[0](torch.cat([maps[0], upper], 1))))


@pytest.mark.parametrize(
    "wrong", [{"widths": (4,)}, {"widths": (4, 0)}, {"classes": 0}, {"layers": 0}, {"stride": 1.5}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(UsageError, match="unet"):
        unet(**wrong)
