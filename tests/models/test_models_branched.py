import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import branched_resnet
from limbeck.signals import capture


@pytest.mark.parametrize("shared", [0, 2, 3])
def test_it_answers_the_mean_of_its_heads_which_are_signals(shared):
    model = branched_resnet(8, 3, 5, 1, 4, shared).eval()
    batch = {"pixel_values": torch.randn(2, 1, 8, 8)}
    found = capture(model, batch, {"logits", "heads.0", "heads.1", "heads.2"})
    heads = [found[f"heads.{m}"] for m in range(3)]
    torch.testing.assert_close(found.logits, sum(heads) / 3)
    assert not torch.equal(heads[0], heads[1])
    assert sum("fc" in name for name, _ in model.named_modules()) == 0  # a head's last module is its classifier
    assert all(head[-1].out_features == 5 for head in model.heads)


def test_it_is_built_again_from_its_lineage():
    model = branched_resnet(8, 2, 5, 1, 4)
    again = build(lineage(model).factory)
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in model.named_parameters()]
    shared = sum(p.numel() for p in model.trunk.parameters())
    more = sum(p.numel() for p in branched_resnet(8, 3, 5, 1, 4).parameters())
    total = sum(p.numel() for p in model.parameters())
    assert more - shared == pytest.approx((total - shared) * 1.5)


@pytest.mark.parametrize("wrong", [{"heads": 1}, {"shared": 4}, {"depth": 9}])
def test_bad_sizes_are_refused(wrong):
    with pytest.raises(UsageError):
        branched_resnet(**{"depth": 8, **wrong})
