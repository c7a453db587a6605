"""The plain CNN."""

import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import cnn


def test_shapes_and_the_lineage_builds_it_again():
    model = cnn((4, 8), kernels=(3, 5), layers=(2, 1), classes=7, channels=1, bias=False).eval()
    x = torch.randn(2, 1, 12, 12)
    assert model.stages[0](x).shape == (2, 4, 12, 12) and model.stages(x).shape == (2, 8, 6, 6)
    assert model.features(x).shape == (2, 8) and model(x).shape == (2, 7) and model.fc.bias is None
    torch.testing.assert_close(model(x), model.fc(model.stages(x).mean((2, 3))))
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"kernels": 4}, {"kernels": (3,)}, {"layers": 0}, {"strides": (1, 2)}, {"classes": 0}]
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(UsageError, match="cnn"):
        cnn(**wrong)
