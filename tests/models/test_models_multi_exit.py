import pytest
import torch

from limbeck.build import build, lineage
from limbeck.errors import UsageError
from limbeck.models import exit_encoder
from limbeck.signals import capture

SIZES = {"vocabulary": 40, "length": 6, "layers": (1, 3), "width": 8, "heads": 2, "embedding": 5}


def example():
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (3, 2, 6), generator=draw)
    mask = (torch.arange(6) < torch.randint(1, 7, (3, 2, 1), generator=draw)).long()
    return ids, mask


def test_exits_are_signals_and_padding_changes_nothing():
    model, (ids, mask) = exit_encoder(**SIZES).eval(), example()
    found = capture(model, {"input_ids": ids, "attention_mask": mask}, {"logits", "exits.0", "exits.1", "blocks.0"})
    assert found["exits.0"].shape == found.logits.shape == (3, 2, 5)
    assert torch.equal(found.logits, found["exits.1"])
    other = torch.where(mask.bool(), ids, (ids + 7) % 40)
    torch.testing.assert_close(model(other, mask), found.logits)
    states, share = model.exits[0].norm(found["blocks.0"]), mask.flatten(0, 1)
    for row in range(6):
        mean = states[row, : int(share[row].sum())].mean(0)
        torch.testing.assert_close(model.exits[0].projection(mean), found["exits.0"].flatten(0, 1)[row])


def test_one_text_is_like_that_text_in_a_pair():
    model, (ids, mask) = exit_encoder(**SIZES).eval(), example()
    torch.testing.assert_close(model(ids[:, 0], mask[:, 0]), model(ids, mask)[:, 0])
    torch.testing.assert_close(model(ids[:, 0]), model(ids, torch.ones_like(mask))[:, 0])


def test_a_truncated_encoder_is_its_exit():
    model, (ids, mask) = exit_encoder(**SIZES).eval(), example()
    cut = model.truncated(0)
    assert len(cut.blocks) == 1 and not cut.training
    expected = capture(model, {"input_ids": ids, "attention_mask": mask}, {"exits.0"})["exits.0"]
    torch.testing.assert_close(cut(ids, mask), expected)
    assert lineage(cut).factory.arguments["layers"] == [1]
    again = build(lineage(cut).factory)
    again.load_state_dict(cut.state_dict())
    torch.testing.assert_close(again.eval()(ids, mask), expected)
    with pytest.raises(UsageError, match="exits 0 to 1"):
        model.truncated(2)


@pytest.mark.parametrize("layers", [(), (2, 1), (0, 2), (2, 2)])
def test_layers_must_rise(layers):
    with pytest.raises(UsageError, match="layers"):
        exit_encoder(**{**SIZES, "layers": layers})
