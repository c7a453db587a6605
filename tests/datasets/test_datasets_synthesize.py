"""Dataset distillation: the discrepancy against naive sums, what each metric can see, and who moves which way."""

import copy
import math

import pytest
import torch

from limbeck.datasets import (
    CharacteristicMatching,
    DistributionCondensation,
    FrequencySampler,
    MeanMatching,
    SyntheticSet,
    characteristic_discrepancy,
    select_per_class,
)
from limbeck.datasets.synthesize import characteristic_function, interpolate, shifted
from limbeck.errors import UsageError
from limbeck.models.convnet import convnet
from limbeck.tasks.custom import CustomTask
from limbeck.training import Trainer, TrainingConfig
from limbeck.training.procedures import State

STATE = State(0, 10, 0.0, 0, torch.device("cpu"))


def _model(seed=0):
    torch.manual_seed(seed)
    return convnet(depth=1, width=4, classes=3, channels=1, size=6)


def _procedure(sampler=True, **settings):
    data = SyntheticSet(torch.randn(6, 1, 6, 6), torch.arange(6) % 3)
    pair = (_model(0).state_dict(), _model(1).state_dict())
    given = {"sampler": FrequencySampler(36, 16) if sampler else None, **settings}
    return DistributionCondensation(data, _model(), [pair], CharacteristicMatching(count=16), **given)


def _batch():
    return {"pixel_values": torch.randn(24, 1, 6, 6), "labels": torch.arange(24) % 3}


def test_the_discrepancy_equals_a_loop_over_complex_numbers():
    real, synthetic, frequencies = torch.randn(7, 3), torch.randn(5, 3) + 0.5, torch.randn(4, 3)
    total = 0.0
    for t in frequencies:
        p = sum(complex(math.cos(x), math.sin(x)) for x in (real @ t).tolist()) / 7
        q = sum(complex(math.cos(x), math.sin(x)) for x in (synthetic @ t).tolist()) / 5
        total += math.sqrt(0.3 * (abs(p) - abs(q)) ** 2 + 0.7 * 2 * (abs(p) * abs(q) - (p * q.conjugate()).real))
    found = characteristic_discrepancy(real, synthetic, frequencies, 0.3, 0.7)
    assert found.item() == pytest.approx(total / 4, rel=1e-4)


def test_with_both_weights_one_it_is_the_modulus_of_the_difference():
    real, synthetic, t = torch.randn(7, 3).double(), torch.randn(5, 3).double(), torch.randn(4, 3).double()
    (a, b), (c, d) = characteristic_function(real, t), characteristic_function(synthetic, t)
    expected = torch.complex(a - c, b - d).abs().mean()
    assert characteristic_discrepancy(real, synthetic, t, 1.0, 1.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_characteristic_function_of_a_normal_is_known():
    t = torch.tensor([[0.5, 0.0], [1.0, -1.0]])
    cosine, sine = characteristic_function(torch.randn(100_000, 2) + torch.tensor([1.0, 0.0]), t)
    for row in range(2):
        size, angle = math.exp(-t[row].square().sum() / 2), t[row, 0].item()
        assert cosine[row].item() == pytest.approx(size * math.cos(angle), abs=0.01)
        assert sine[row].item() == pytest.approx(size * math.sin(angle), abs=0.01)


def test_equal_sets_have_none_and_a_finite_gradient():
    x = torch.randn(6, 3)
    y = x.clone().requires_grad_()
    loss = characteristic_discrepancy(x, y, torch.randn(8, 3))
    loss.backward()
    assert loss.item() < 2e-3 and y.grad.isfinite().all()


def test_variance_is_seen_where_means_are_equal():
    x = torch.randn(4000, 2)
    x = x - x.mean(0)
    frequencies = torch.randn(64, 2)
    assert MeanMatching()(x, 3 * x).item() < 1e-9
    assert characteristic_discrepancy(x, 3 * x, frequencies).item() > 0.05


def test_gradient_equals_finite_differences():
    real, t = torch.randn(5, 3).double(), torch.randn(4, 3).double()
    synthetic = torch.randn(4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: characteristic_discrepancy(real, x, t), synthetic, atol=1e-6)


def test_matching_is_scaled_and_normalized():
    real, synthetic, t = torch.randn(5, 3), torch.randn(4, 3), torch.randn(6, 3)
    one = CharacteristicMatching(scale=1.0)(real, synthetic, t)
    unit = [x / x.norm(dim=1, keepdim=True) for x in (real, synthetic)]
    assert one.item() == pytest.approx(characteristic_discrepancy(*unit, t).item(), rel=1e-5)
    assert CharacteristicMatching()(5 * real, synthetic, t).item() == pytest.approx(300 * one.item(), rel=1e-4)


def test_the_sampler_climbs_and_the_images_descend():
    procedure, batch = _procedure(calibration_weight=0.0), _batch()
    procedure.pairs = [(procedure.pairs[0][0],) * 2]  # one network
    start = [copy.deepcopy(module.state_dict()) for module in (procedure.synthetic, procedure.sampler)]

    def value():
        torch.manual_seed(5)
        return procedure.step(batch, STATE)["images"].value

    before = value()
    for module, key, sign in ((procedure.synthetic, "images", -1), (procedure.sampler, "sampler", 1)):
        procedure.synthetic.load_state_dict(start[0])
        procedure.sampler.load_state_dict(start[1])
        torch.manual_seed(5)
        loss = procedure.step(batch, STATE)[key].value
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter -= 0.01 * gradient / (torch.cat([g.flatten() for g in gradients]).norm() + 1e-12)
        assert sign * (value() - before).item() > 0


def test_classes_are_matched_one_by_one():
    procedure, batch = _procedure(sampler=False, shift=0), _batch()
    procedure.metric = MeanMatching()
    found = procedure.matching(batch["pixel_values"], batch["labels"], procedure.synthetic(), None)
    features = [procedure.network.features(x).flatten(1) for x in (batch["pixel_values"], procedure.synthetic())]
    expected = sum((features[0][c::3].mean(0) - features[1][c::3].mean(0)).square().sum().item() for c in range(3))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    only = procedure.matching(batch["pixel_values"][1::3], batch["labels"][1::3], procedure.synthetic(), None)
    assert 0 < only.item() < expected


def test_networks_lie_between_the_pair():
    first, last, network = _model(0), _model(1), _model(2)
    interpolate(network, first.state_dict(), last.state_dict(), 0.25)
    assert torch.allclose(network.fc.weight, 0.75 * first.fc.weight + 0.25 * last.fc.weight)


def test_training_moves_images_and_sampler_and_no_network():
    procedure, batch = _procedure(), _batch()
    images, sampler = procedure.synthetic.images.detach().clone(), copy.deepcopy(procedure.sampler.state_dict())
    data = (batch["pixel_values"], batch["labels"])
    task = CustomTask(dict.fromkeys(("train", "validation", "test"), data), classes=3)
    Trainer(TrainingConfig(steps=2, batch_size=12), progress=False).run(procedure, task)
    assert not torch.equal(images, procedure.synthetic.images)
    assert not torch.equal(sampler["layers.0.weight"], procedure.sampler.state_dict()["layers.0.weight"])
    assert set(procedure.kept_modules()) == {"images", "sampler"}


def test_frequencies_keep_within_reach():
    frequencies = FrequencySampler(5, 64, reach=2.0)()
    assert frequencies.shape == (64, 5) and frequencies.abs().max() <= 2 < 4 * frequencies.abs().max()


def test_shifts_are_the_same_for_all():
    x = torch.randn(3, 1, 5, 5)
    first, second = shifted((x, 2 * x[:2]), 2)
    assert first.shape == x.shape and torch.equal(2 * first[:2], second)
    assert torch.equal(shifted((x,), 0)[0], x)


def test_as_many_of_every_class_are_chosen():
    labels = torch.tensor([0, 1, 2] * 5)
    chosen = select_per_class(labels, 2, torch.Generator().manual_seed(0))
    assert labels[chosen].tolist() == [0, 0, 1, 1, 2, 2] and len(set(chosen.tolist())) == 6
    with pytest.raises(UsageError):
        select_per_class(labels, 6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CharacteristicMatching(amplitude=-1),
        lambda: CharacteristicMatching(amplitude=0, phase=0),
        lambda: CharacteristicMatching(count=0),
        lambda: FrequencySampler(3, 1),
        lambda: SyntheticSet(torch.zeros(3, 1, 2, 2), torch.zeros(2)),
        lambda: DistributionCondensation(
            SyntheticSet(torch.zeros(1, 1, 6, 6), torch.zeros(1)), _model(), [], MeanMatching()
        ),
        lambda: _procedure(shift=-1),
        lambda: convnet(depth=4, size=14),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(UsageError):
        make()
