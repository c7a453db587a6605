"""Bits of experts: what is measured against whole passes with one expert rounded, the choice against every other one."""

import copy
import itertools

import pytest
import torch
from small_mixture import Tokens, mixture
from torch.nn import functional as F

from limbeck.errors import BudgetError, DataError, UsageError
from limbeck.models import gpt
from limbeck.plan import apply
from limbeck.quantization import ExpertBits, Quantize, Quantizer, named
from limbeck.quantization.expert_bits import Use
from limbeck.quantization.granularity import PerGroup
from limbeck.quantization.hessian import matrix, write_matrix
from limbeck.signals import call

QUICK = {"examples": 16, "batch_size": 8}
NEAREST = Quantize(weights=8, activations=None)


def outputs(model, path):
    """What a mixture is given and gives, for every batch."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda m, x, y: found.append((x[0].detach(), y.detach())))
    for batch in Tokens().batches("train", 8, limit=16):
        call(model, batch)
    handle.remove()
    return found


def test_what_is_measured_is_that_of_whole_passes():
    model = mixture()
    found = ExpertBits(bits=(1, 3), at_least={}, quantize=NEAREST, **QUICK).measure(model, Tokens())
    assert list(found) == ["blocks.0.feed_forward", "blocks.1.feed_forward"]
    for path, use in found.items():
        usual = outputs(model, path)
        router = model.get_submodule(path).router
        probability = torch.cat([F.softmax(router(x), -1).flatten(0, 1) for x, _ in usual]).detach().double()
        top = probability.topk(2, -1)
        taken = torch.zeros_like(probability).scatter(1, top.indices, top.values)
        torch.testing.assert_close(use.frequency, (taken > 0).double().sum(0) / (2 * len(taken)))
        torch.testing.assert_close(use.routing, taken.sum(0) / taken.sum(), rtol=1e-5, atol=1e-7)
        for width, grid in (
            (1, named("binary")),
            (3, named({"name": "integer", "symmetric": False, "signed": False}, 3)),
        ):
            for index in range(4):
                changed = copy.deepcopy(model.get_submodule(path))
                quantizer = Quantizer(grid, PerGroup(8), grid.methods[0], "bfloat16")
                for linear in (changed.experts[index].up, changed.experts[index].down):
                    write_matrix(linear, quantizer.decode(quantizer.encode(matrix(linear))))
                expected = sum(float((changed(x).detach() - y).norm()) for x, y in usual)
                assert float(use.error[width][index]) == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_an_expert_by_hand():
    use = Use(torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]), {1: torch.tensor([4.0, 2.0])})
    assert ExpertBits().losses(use)[1].tolist() == pytest.approx([0.25 * 0.5**1.5 * 16, 0.75 * 0.5**1.5 * 4])
    found = ExpertBits(routing=0.0, error=1.0, own_errors=False).losses(use)[1]
    assert found.tolist() == pytest.approx([0.25 * 3, 0.75 * 3])


@pytest.mark.parametrize("own", [True, False], ids=["own", "mean"])
def test_the_choice_is_the_least_of_all(own):
    model = mixture()
    bits = ExpertBits(average_bits=2.0, quantize=NEAREST, own_errors=own, **QUICK)
    measured, chosen = bits.measure(model, Tokens()), bits.choose(model, Tokens())
    for path, use in measured.items():

        def loss(widths, use=use):
            errors = use.error if own else {w: e.mean().expand(4) for w, e in use.error.items()}
            return sum(
                float(use.frequency[i] * use.routing[i] ** 1.5 * errors[w][i] ** 2) for i, w in enumerate(widths)
            )

        fitting = [c for c in itertools.product((1, 2, 3), repeat=4) if sum(c) <= 8 and 2 in c and 3 in c]
        picked = tuple(chosen[path][i] for i in range(4))
        assert picked in fitting and loss(picked) == pytest.approx(min(map(loss, fitting)))


def test_the_plan_gives_experts_their_bits_and_the_others_theirs():
    model = mixture()
    bits = ExpertBits(
        average_bits=2.0, quantize=Quantize(weights=8, activations=None, rounding="gptq", ignore=("*.router",)), **QUICK
    )
    plan = bits.plan(model, Tokens())
    assert list(plan.decisions["experts"]) == ["blocks.0.feed_forward", "blocks.1.feed_forward"]
    for path, entry in plan.decisions["modules"].items():
        owner, mark, rest = path.partition(".experts.")
        expected = plan.decisions["experts"][owner][int(rest.split(".")[0])] if mark else 4
        assert entry["weight"]["bits"] == expected
    made = apply(copy.deepcopy(model), plan)
    batch = next(Tokens().batches("train", 4, limit=4))
    assert torch.isfinite(call(made, batch)).all() and plan.decisions["rounding"]["class"].endswith("GPTQ")
    assert model.blocks[0].feed_forward.router.weight.equal(made.blocks[0].feed_forward.router.weight)


def test_what_cannot_be_right():
    with pytest.raises(UsageError, match="average_bits=4"):
        ExpertBits(average_bits=4)
    with pytest.raises(UsageError, match="at_least"):
        ExpertBits(at_least={5: 1})
    with pytest.raises(UsageError, match="exponent"):
        ExpertBits(routing=-1.0)
    with pytest.raises(UsageError, match="no limbeck MixtureOfExperts"):
        ExpertBits().plan(gpt(30, 8, 1, 16, 2), Tokens())
    with pytest.raises(UsageError, match="no task"):
        ExpertBits().plan(mixture())
    with pytest.raises(BudgetError, match="at least"):
        ExpertBits(average_bits=1.25, quantize=NEAREST, **QUICK).choose(mixture(), Tokens())

    class Empty:
        def batches(self, *_, **__):
            return iter(())

    with pytest.raises(DataError, match="no batch"):
        ExpertBits(quantize=NEAREST).choose(mixture(), Empty())
