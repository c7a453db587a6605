"""Meta-distillation against a step written out by hand, and its second-order gradient against finite differences."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training_examples import TinyTask

from limbeck.errors import UsageError
from limbeck.training import Aggregator, MetaDistil, Trainer, TrainingConfig
from limbeck.training.meta import one_step


class Network(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.features, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, pixel_values):
        return self.fc(self.features(pixel_values))


def scaled(factor):
    return lambda batch: {**batch, "pixel_values": factor * batch["pixel_values"]}


def make(double=False, **settings):
    student, aggregator = Network(0), Aggregator(8, 2, 0.0)
    procedure = MetaDistil(
        student,
        aggregator,
        [Network(k) for k in (1, 2, 3)],
        [scaled(k) for k in (1.0, 2.0, -1.0)],
        **{"rate": 0.5, **settings},
    )
    if double:
        for module in (student, aggregator, *procedure.experts):
            module.double()
    return procedure


def outer(procedure, images, labels, domain):
    """The loss after the inner step, parameter by parameter."""
    student, half = procedure.student, len(images) // 2
    _, linear, _ = student.features
    others = [expert for at, expert in enumerate(procedure.experts) if at != domain]
    known = torch.stack([expert.features(images[:half]) for expert in others], 1).detach()
    target = procedure.aggregator.block(known).mean(1)
    own = torch.tanh(images[:half].flatten(1) @ linear.weight.T + linear.bias)
    inner = (own - target).square().sum(1).div(8).mean()
    slopes = torch.autograd.grad(inner, [linear.weight, linear.bias], create_graph=True)
    weight, bias = linear.weight - procedure.rate * slopes[0], linear.bias - procedure.rate * slopes[1]
    moved = torch.tanh(images[half:].flatten(1) @ weight.T + bias)
    return F.cross_entropy(student.fc(moved), labels[half:])


def given(procedure, batch, seed):
    torch.manual_seed(seed)
    domain = int(torch.randint(3, ()))
    torch.manual_seed(seed)
    return domain, procedure.domains[domain](batch)


@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_the_query_loss_after_the_inner_step(seed):
    procedure, batch = make(), next(TinyTask().batches("train", 8))
    domain, seen = given(procedure, batch, seed)
    losses = procedure.step(batch, None)
    expected = outer(procedure, seen["pixel_values"], seen["labels"], domain)
    torch.testing.assert_close(losses["student"].value, expected)
    weights = [*procedure.student.parameters(), *procedure.aggregator.parameters()]
    slopes = [
        torch.autograd.grad(v, weights, allow_unused=True, retain_graph=True)
        for v in (losses["student"].value, expected)
    ]
    for one, other in zip(*slopes):
        assert (one is not None and float(one.abs().max()) > 0) or one is other is None
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    assert all(parameter.grad is None for expert in procedure.experts for parameter in expert.parameters())


def test_the_gradient_goes_through_the_step():
    procedure = make(double=True)
    batch = next(TinyTask().batches("train", 8))
    batch = {**batch, "pixel_values": batch["pixel_values"].double()}
    weight = procedure.student.features[1].weight

    def value():
        torch.manual_seed(1)
        return procedure.step(batch, None)["student"].value

    slope = torch.autograd.grad(value(), weight)[0]
    for row, column in ((0, 0), (3, 7)):
        found = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[row, column] += sign * 1e-3
            found.append(float(value().detach()))
            with torch.no_grad():
                weight[row, column] -= sign * 1e-3
        assert (found[0] - found[1]) / 2e-3 == pytest.approx(float(slope[row, column]), rel=2e-3, abs=1e-6)


def test_adapt_takes_the_inner_step_with_all_experts_and_leaves_the_student():
    procedure, images = make(), torch.randn(5, 2, 4, 4)
    before = copy.deepcopy(procedure.student.state_dict())
    adapted = procedure.adapt(images)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), procedure.student.state_dict().values()))
    linear = procedure.student.features[1]
    target = procedure.aggregator(torch.stack([e.features(images) for e in procedure.experts], 1)).detach()
    loss = (procedure.student.features(images) - target).square().mean()
    slope = torch.autograd.grad(loss, linear.weight)[0]
    torch.testing.assert_close(adapted.features[1].weight, linear.weight - 0.5 * slope)
    assert torch.equal(adapted.fc.weight, procedure.student.fc.weight)
    near, far = ((m.features(images) - target).square().mean() for m in (adapted, procedure.student))
    assert float(near) < float(far)


def test_a_rate_of_almost_nothing_is_plain_training_on_the_query():
    procedure, batch = make(rate=1e-12), next(TinyTask().batches("train", 8))
    _, seen = given(procedure, batch, 4)
    found = procedure.step(batch, None)["student"].value
    torch.testing.assert_close(found, F.cross_entropy(procedure.student(seen["pixel_values"][4:]), seen["labels"][4:]))


def test_both_stages_run_in_the_trainer_and_the_aggregator_is_slow():
    for meta in (False, True):
        procedure = make(meta=meta)
        before = [copy.deepcopy(m.state_dict()) for m in (procedure.student, procedure.aggregator, *procedure.experts)]
        Trainer(TrainingConfig(steps=3, batch_size=8, learning_rate=0.01), progress=False).run(procedure, TinyTask())
        modules = (procedure.student, procedure.aggregator, *procedure.experts)
        moved = [
            max(float((a - b).abs().max()) for a, b in zip(old.values(), new.state_dict().values()))
            for old, new in zip(before, modules)
        ]
        assert moved[0] > 0 and moved[1] > 0 and moved[2:] == [0, 0, 0]
        assert (moved[1] < 0.1 * moved[0]) == meta


def test_one_step_and_the_aggregator():
    module = nn.Linear(2, 1)
    moved = one_step(module, module(torch.ones(1, 2)).sum(), 0.25)
    torch.testing.assert_close(moved["weight"], module.weight - 0.25)
    aggregator = Aggregator(8, 2).eval()
    features = torch.randn(3, 4, 8)
    torch.testing.assert_close(aggregator(features[:, [2, 0, 3, 1]]), aggregator(features))


def test_nonsense_is_refused():
    student, experts = Network(0), [Network(k) for k in (1, 2, 3)]
    with pytest.raises(UsageError, match="three or more"):
        MetaDistil(student, Aggregator(8, 2), experts[:2], [dict] * 2)
    with pytest.raises(UsageError, match="rate"):
        MetaDistil(student, Aggregator(8, 2), experts, [dict] * 3, rate=0)
    with pytest.raises(UsageError, match="batch normalization"):
        MetaDistil(nn.Sequential(nn.BatchNorm1d(3)), Aggregator(8, 2), experts, [dict] * 3)
    with pytest.raises(UsageError, match="heads"):
        Aggregator(8, 3)
