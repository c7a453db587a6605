"""How terms are balanced: forces, learned variances, what checkpoints keep, what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from training_examples import TinyTask, same

from limbeck.errors import UsageError
from limbeck.objectives import CrossEntropy, Objective, SoftTargets
from limbeck.signals import Reads
from limbeck.steps import parse_step
from limbeck.training import Distil, GradientNormBalance, Trainer, TrainingConfig, UncertaintyBalance
from limbeck.training.balance import BALANCES, as_balance, gradient_norms


class TwoHeads(nn.Module):
    """Logits, and a side head that only the small term sees."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.main, self.side = nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, pixel_values):
        x = pixel_values.flatten(1)
        self.side(x)
        return self.main(x)


@dataclass(frozen=True)
class Small(Objective):
    """A thousandth of the mean squared error of the side head against the teacher's, or so many times that."""

    times: float = 1.0

    @property
    def reads(self):
        return Reads(frozenset({"side"}), frozenset({"side"}))

    def compute(self, student, teacher, batch, connectors):
        return self.times * 1e-3 * (student["side"] - teacher["side"]).square().mean()


def config(**changes):
    return TrainingConfig(
        **{"steps": 60, "batch_size": 12, "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.0} | changes
    )


def trained(balance, objective=None, folder=None, student=None, **changes):
    student = student or TwoHeads()
    procedure = Distil(student, TwoHeads(1), objective or CrossEntropy() + Small(), balance)
    history = Trainer(config(**changes), folder, progress=False).run(procedure, TinyTask())
    return student, history, procedure


def test_gradient_norms_against_backward():
    model, x = TwoHeads(), torch.randn(5, 2, 4, 4)
    values = [model(x).square().sum(), model.side(x.flatten(1)).sum(), torch.ones(())]
    found = gradient_norms(values, model.parameters())
    for value, norm in zip(values[:2], found):
        model.zero_grad()
        value.backward(retain_graph=True)
        wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
        assert torch.allclose(norm, wanted, rtol=1e-6)
    assert found[2] == 0


@pytest.mark.parametrize("balance", ["gradient_norm", "uncertainty"])
def test_a_term_a_thousand_times_smaller_is_not_drowned(balance):
    def last(history):
        return history.steps[-1]["parts"]

    fixed, balanced = (last(trained(kind)[1]) for kind in ("fixed", balance))
    first = last(trained("fixed", steps=1)[1])
    assert fixed["Small"] > 0.95 * first["Small"]  # as given it hardly moves
    assert balanced["Small"] < 0.2 * first["Small"]
    assert balanced["CrossEntropy"] < 0.7 * first["CrossEntropy"]


@pytest.mark.parametrize("balance", ["gradient_norm", "uncertainty"])
def test_the_scale_of_a_term_does_not_matter(balance):
    one, _, _ = trained(balance, steps=20)
    other, _, _ = trained(balance, CrossEntropy() + Small(1e4), steps=20)
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_weights_still_say_how_much_a_term_counts():
    student, teacher, task = TwoHeads(), TwoHeads(1), TinyTask()
    batch = next(task.batches("train", 12))
    for weight in (1.0, 0.25):
        procedure = Distil(student, teacher, CrossEntropy() + weight * Small(), GradientNormBalance(every=1))
        procedure.prepare(batch, torch.device("cpu"))
        state = type("At", (), {"step": 0})
        loss = procedure.step(batch, state)["main"]
        side = torch.autograd.grad(loss.value, list(student.side.parameters()), retain_graph=True)
        main = torch.autograd.grad(loss.value, list(student.main.parameters()))
        force = [torch.cat([g.flatten() for g in found]).norm() for found in (main, side)]
        assert torch.allclose(force[1], weight * force[0], rtol=1e-5)
        assert loss.parts["balance(CrossEntropy)"] == 1


def test_running_norms_and_measurements():
    """The factors follow a running mean that is measured every third step."""
    balance = GradientNormBalance(every=3, decay=0.5)
    weigher, p = balance.weigher(2), nn.Parameter(torch.ones(1))
    seen = []
    for step, size in enumerate((1.0, 50.0, 50.0, 3.0)):
        _, factors = weigher.combine([2 * p.sum(), size * p.sum()], [1.0, 1.0], [p], step)
        weigher.settle()
        seen.append(float(factors[1]))
    assert seen == [2.0, 2.0, 2.0, 2.0]  # a step uses what was known before it
    assert torch.allclose(weigher.running, torch.tensor([2.0, 2.0])) and weigher.seen == 2
    _, factors = weigher.combine([2 * p.sum(), p.sum() * 0 + 1], [1.0, 1.0], [p], 4)
    assert factors.tolist() == [1.0, 1.0]


def test_pieces_of_a_batch_are_averaged_and_no_gradient_has_no_factor():
    weigher, p = GradientNormBalance().weigher(2), nn.Parameter(torch.ones(1))
    for size in (1.0, 3.0):
        weigher.combine([p.sum(), size * p.sum()], [1.0, 1.0], [p], 0)
    weigher.settle()
    assert weigher.running.tolist() == [1.0, 2.0]
    fresh = GradientNormBalance().weigher(2)
    assert fresh.combine([p.sum(), torch.ones(())], [1.0, 1.0], [p], 0)[1].tolist() == [1.0, 1.0]


def test_uncertainty_against_the_formula():
    weigher = UncertaintyBalance(data_start=False).weigher(2)
    with torch.no_grad():
        weigher.theta.copy_(torch.tensor([0.3, -1.0]))
    values, weights = [torch.tensor(2.0), torch.tensor(0.5)], [1.0, 0.25]
    total, _ = weigher.combine(values, weights, [], 0)
    s = torch.tensor([0.3, -1.0])
    wanted = (-s[0]).exp() * 2 + s[0] + 0.25 * ((-s[1]).exp() * 0.5 + s[1])
    assert torch.allclose(total, wanted)
    total.backward()
    assert torch.allclose(weigher.theta.grad, torch.tensor([1 - (-s[0]).exp() * 2, 0.25 * (1 - (-s[1]).exp() * 0.5)]))


def test_uncertainty_begins_at_its_optimum_and_is_trained():
    _, history, procedure = trained("uncertainty", steps=30)
    theta = procedure.weigher.theta.detach()
    assert theta.abs().min() > 1e-3 and history.steps[0]["parts"]["balance(Small)"] > 100
    weigher, values = UncertaintyBalance().weigher(2), [torch.tensor(7.0), torch.tensor(0.007)]
    total, factors = weigher.combine(values, [1.0, 1.0], [], 0)
    total.backward()
    assert torch.allclose(factors * torch.stack(values), torch.ones(2)) and weigher.theta.grad.abs().max() < 1e-6


@pytest.mark.parametrize("balance", ["gradient_norm", "uncertainty"])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(balance, tmp_path):
    whole, _, _ = trained(balance, steps=12, checkpoint_every=4)

    class Stops(TinyTask):
        def batches(self, *args, **settings):
            for number, batch in enumerate(super().batches(*args, **settings)):
                if settings.get("epoch") == 3 and number == 1:
                    raise KeyboardInterrupt
                yield batch

    procedure = Distil(TwoHeads(), TwoHeads(1), CrossEntropy() + Small(), balance)
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(steps=12, checkpoint_every=4), tmp_path, progress=False).run(procedure, Stops())
    resumed, _, again = trained(balance, folder=tmp_path, steps=12, checkpoint_every=4)
    assert same(whole, resumed) and float(again.weigher.seen) > 0


def test_fixed_is_the_sum_as_it_is(tmp_path):
    assert as_balance("fixed") is None and set(BALANCES) == {"fixed", "gradient_norm", "uncertainty"}
    assert same(trained("fixed", steps=5)[0], trained(None, steps=5)[0])
    named = Distil(TwoHeads(), TwoHeads(1), CrossEntropy() + Small(), GradientNormBalance(every=2)).describe()
    assert named["balance"]["every"] == 2
    assert "balance" not in Distil(TwoHeads(), TwoHeads(1), CrossEntropy() + Small()).describe()


def test_recipes_name_a_balance():
    terms = [{"class": "CrossEntropy"}, {"class": "SoftTargets", "temperature": 2.0}]

    def step(balance, objective=terms):
        body = {"objective": objective, "train": {"steps": 1}, "balance": balance}
        return parse_step({"distill": body}, "steps[0]")

    assert step("gradient_norm").balance == GradientNormBalance()
    assert step({"class": "GradientNormBalance", "every": 5}).balance == GradientNormBalance(every=5)
    assert step("uncertainty").balance == UncertaintyBalance() and step("fixed").balance is None
    with pytest.raises(UsageError, match=r"steps\[0\].distill: balance='gradnorm' is unknown. .*gradient_norm"):
        step("gradnorm")
    with pytest.raises(UsageError, match="single term"):
        step("uncertainty", terms[:1])


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="every=0"):
        GradientNormBalance(every=0)
    with pytest.raises(UsageError, match="decay=1"):
        GradientNormBalance(decay=1.0)
    with pytest.raises(UsageError, match="single term"):
        Distil(TwoHeads(), TwoHeads(1), SoftTargets(), "uncertainty")
    with pytest.raises(UsageError, match="single term"):
        Distil(TwoHeads(), TwoHeads(1), SoftTargets() + 0 * Small(), "uncertainty")
    with pytest.raises(UsageError, match="never negative"):
        UncertaintyBalance().weigher(2).combine([torch.tensor(1.0), torch.tensor(-1.0)], [1.0, 1.0], [], 0)
