"""Sparse fine-tuning: the masks are those of the largest changes, nothing else moves, and what was learnt adds up."""

import copy

import pytest
import torch
from torch import nn
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.training import (
    SparseDelta,
    SparseTuning,
    Supervised,
    Trainer,
    TrainingConfig,
    most_changed,
    rewind,
    weights_of,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def trained(model, masks=None, weight_decay=0.1, epochs=2):
    procedure = Supervised(model, TinyTask())
    config = TrainingConfig(epochs=epochs, batch_size=12, learning_rate=0.01, weight_decay=weight_decay, augment=False)
    Trainer(config, progress=False).run(procedure if masks is None else SparseTuning(procedure, masks), TinyTask())
    return model


def test_masks_are_the_largest_changes_of_all_parameters_together():
    model = network()
    before = weights_of(model)
    trained(model)
    masks = most_changed(before, model, 0.1)
    changes = sorted(
        (-abs(float(v.detach()) - float(b)), at, name)
        for name, value in model.named_parameters()
        for at, (v, b) in enumerate(zip(value.flatten(), before[name].flatten()))
    )
    count = round(0.1 * len(changes))
    expected = {(name, at) for _, at, name in changes[:count]}
    found = {(name, at) for name, mask in masks.items() for at in mask.flatten().nonzero().flatten().tolist()}
    assert found == expected and count == 23


def test_free_parameters_have_no_mask_and_fixed_ones_an_empty_one():
    model = network()
    before = weights_of(model)
    trained(model)
    masks = most_changed(before, model, 0.5, free=("3.*",), fixed=("2.*",))
    assert set(masks) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert not masks["2.weight"].any() and not masks["2.bias"].any()
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.5 * 33 * 6)


def test_ties_go_to_the_first_entry():
    model = nn.Linear(4, 1, bias=False)
    before = weights_of(model)
    assert most_changed(before, model, 0.5)["weight"].tolist() == [[True, True, False, False]]


def test_only_what_the_masks_allow_moves_whatever_the_optimizer_does():
    model = network()
    before = weights_of(model)
    masks = most_changed(before, trained(copy.deepcopy(model)), 0.1, free=("3.*",), fixed=("2.*",))
    trained(model, masks)
    for name, value in model.named_parameters():
        same = value == before[name]
        if name.startswith("3"):
            assert not same.any()
        else:
            assert bool(same[~masks[name]].all()) and not bool(same[masks[name]].any()), name


def test_masks_that_allow_everything_change_nothing():
    plain, masked = trained(network()), network()
    trained(masked, {name: torch.ones_like(p, dtype=torch.bool) for name, p in masked.named_parameters()})
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), masked.parameters()))


def test_rewinding_puts_back_what_is_named():
    model = network()
    before = weights_of(model)
    trained(model)
    rewind(model, before, ("1.weight",))
    assert torch.equal(model[1].weight, before["1.weight"]) and not torch.equal(model[3].weight, before["3.weight"])
    rewind(model, before)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_deltas_add_up_and_take_away():
    model = network()
    before = weights_of(model)
    masks = most_changed(before, trained(copy.deepcopy(model)), 0.1)
    first, second = (copy.deepcopy(model) for _ in range(2))
    trained(first, masks)
    trained(second, masks, weight_decay=0.0, epochs=1)
    one, two = SparseDelta.between(before, first), SparseDelta.between(before, second)
    assert one.count == sum(int(mask.sum()) for mask in masks.values()) == 23 and one.nbytes == 23 * (4 + 4)
    both = two.add_to(one.add_to(copy.deepcopy(model)))
    for (name, value), a, b in zip(both.named_parameters(), first.parameters(), second.parameters()):
        torch.testing.assert_close(value, a + b - before[name])
    gone = one.add_to(copy.deepcopy(first), -1.0)
    for name, value in gone.named_parameters():
        torch.testing.assert_close(value.detach(), before[name])


def test_masks_tell_procedures_apart():
    model = network()
    masks = most_changed(weights_of(model), model, 0.1)
    others = [masks, {}, most_changed(weights_of(model), model, 0.2)]
    assert len({str(SparseTuning(Supervised(model, TinyTask()), m).describe()) for m in others}) == 3


def test_refusals():
    model = network()
    before, procedure = weights_of(model), Supervised(model, TinyTask())
    for share in (0, 1.1, True):
        with pytest.raises(UsageError, match="share"):
            most_changed(before, model, share)
    with pytest.raises(UsageError, match="norm"):
        most_changed(before, model, 0.1, fixed=("norm*",))
    with pytest.raises(UsageError, match="no parameter"):
        most_changed(before, model, 0.1, free=("*",))
    with pytest.raises(UsageError, match="other parameters"):
        most_changed({}, model, 0.1)
    with pytest.raises(UsageError, match="no module"):
        SparseTuning(procedure, {}, "teacher")
    with pytest.raises(UsageError, match="no parameter"):
        SparseTuning(procedure, {"weight": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(UsageError, match="bool"):
        SparseTuning(procedure, {"1.bias": torch.ones(6)})
    with pytest.raises(UsageError, match="SparseDelta"):
        SparseDelta({"9.weight": (torch.tensor([0]), torch.ones(1))}).add_to(model)
