import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import signal_cnn, signal_transformer


@pytest.mark.parametrize("make", [signal_cnn, signal_transformer])
def test_signals_become_logits_and_the_lineage_builds_it_again(make):
    model = make(classes=5).eval()
    signal = torch.randn(3, 2, 128)
    assert model(signal).shape == (3, 5)
    torch.testing.assert_close(model(signal)[:1], model(signal[:1]), atol=1e-5, rtol=1e-4)
    again = build(lineage(model).factory).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(signal), model(signal))


def test_the_student_has_some_ten_thousand_parameters():
    count = sum(p.numel() for p in signal_cnn().parameters())
    assert 5_000 < count < 15_000 < sum(p.numel() for p in signal_transformer().parameters())


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"widths": ()}, {"widths": (0,)}, {"classes": 0}])
def test_bad_sizes_are_refused(wrong):
    for make in (signal_cnn, signal_transformer):
        with pytest.raises(UsageError):
            make(**wrong)
    with pytest.raises(UsageError, match="heads"):
        signal_transformer((30,), heads=4)
