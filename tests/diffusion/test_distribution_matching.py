"""DMD2's parts against closed forms, and who moves when."""

import copy

import pytest
import torch
from torch.nn import functional as F

from limbeck.diffusion import (
    Denoiser,
    DistributionMatching,
    GaussianMixture,
    MixtureDenoiser,
    NoiseSchedule,
    discriminator_head,
    matching_direction,
    ring,
)
from limbeck.diffusion.distribution_matching import along, classifier_loss, realism_loss
from limbeck.errors import UsageError
from limbeck.models.denoising_mlp import denoising_mlp
from limbeck.tasks.custom import CustomTask
from limbeck.training import Trainer, TrainingConfig
from limbeck.training.procedures import State

SCHEDULE = NoiseSchedule(steps=100, first=1e-3, last=0.1)
STATE = State(0, 10, 0.0, 0, torch.device("cpu"))


def _denoiser():
    network = denoising_mlp((2,), width=16, blocks=2, steps=100)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Denoiser(network, SCHEDULE)


def _procedure(**settings):
    head = {"head": discriminator_head(16), "features": "network.blocks.0"}
    given = {"times": (40,), **head, **settings}
    return DistributionMatching(_denoiser(), MixtureDenoiser(ring(), SCHEDULE), _denoiser(), **given)


def _task():
    x, y = ring().sample(64, torch.Generator().manual_seed(0))
    return CustomTask(dict.fromkeys(("train", "validation", "test"), (x, y)), classes=8)


def test_the_direction_is_the_difference_of_scores_in_closed_form():
    """Generator N(m, s^2), teacher N(0, s^2): D_fake - D_real = m (1 - alpha_bar) / (alpha_bar s^2 + 1 - alpha_bar), at any x_t."""
    mean, s, t = torch.tensor([0.7, -1.2]), 0.5, torch.tensor([20, 60])
    fake = MixtureDenoiser(GaussianMixture((tuple(mean.tolist()),), s), SCHEDULE)
    real = MixtureDenoiser(GaussianMixture(((0.0, 0.0),), s), SCHEDULE)
    x = mean + s * torch.randn(2, 2)
    noisy = SCHEDULE.add_noise(x, torch.randn(2, 2), t)
    alpha_bar = SCHEDULE.at(t, x)
    expected = mean * (1 - alpha_bar) / (alpha_bar * s**2 + 1 - alpha_bar)
    d_real = real(noisy, t)
    expected = expected / (x - d_real).abs().mean(1, keepdim=True)
    assert torch.allclose(matching_direction(x, d_real, fake(noisy, t)), expected, atol=1e-5)


def test_the_direction_is_zero_where_nothing_is_to_normalize_by():
    x = torch.ones(2, 1, 3, 3)
    assert torch.equal(matching_direction(x, x, x + 1), torch.zeros_like(x))


def test_along_has_the_direction_as_gradient():
    x, direction = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4, 1, 3, 3)
    loss = along(x, direction)
    loss.backward()
    assert torch.allclose(x.grad, direction / x.numel(), atol=1e-7)
    assert loss.item() == pytest.approx(0.5 * direction.square().mean().item(), rel=1e-5)


def test_descending_the_direction_reaches_the_teacher():
    """A generator that only shifts its noise, with the exact fake score at every shift."""
    shift, teacher = torch.tensor([1.5, -1.0]), MixtureDenoiser(GaussianMixture(((0.3, 0.2),), 0.5), SCHEDULE)
    for _ in range(150):
        fake = MixtureDenoiser(GaussianMixture((tuple(shift.tolist()),), 0.5), SCHEDULE)
        x = shift + 0.5 * torch.randn(64, 2)
        t = torch.randint(2, 98, (64,))
        noisy = SCHEDULE.add_noise(x, torch.randn(64, 2), t)
        shift = shift - 0.1 * matching_direction(x, teacher(noisy, t), fake(noisy, t)).mean(0)
    assert torch.allclose(shift, torch.tensor([0.3, 0.2]), atol=0.1)


def test_the_game_is_the_cross_entropy_of_real_against_fake():
    fake, real = torch.randn(5, 1), torch.randn(5, 1)
    bce = F.binary_cross_entropy_with_logits
    expected = bce(fake, torch.zeros(5, 1)) + bce(real, torch.ones(5, 1))
    assert classifier_loss(fake, real).item() == pytest.approx(expected.item(), rel=1e-5)
    assert realism_loss(fake).item() == pytest.approx(bce(fake, torch.ones(5, 1)).item(), rel=1e-5)


def test_a_step_is_the_sum_of_its_parts():
    procedure = _procedure(matching_weight=0.5, realism_weight=0.25, classifier_weight=0.125)
    losses = procedure.step({"pixel_values": torch.randn(8, 2)}, STATE)
    generator, critic = losses["generator"], losses["fake_score"]
    parts = generator.parts
    assert generator.value.item() == pytest.approx((0.5 * parts["matching"] + 0.25 * parts["realism"]).item(), rel=1e-5)
    parts = critic.parts
    assert critic.value.item() == pytest.approx((parts["denoising"] + 0.125 * parts["classifier"]).item(), rel=1e-5)


def test_the_generator_rests_between_critic_updates_and_the_teacher_always():
    procedure = _procedure(critic_updates=3)
    seen = {name: [] for name in procedure.modules}
    previous = {name: copy.deepcopy(module.state_dict()) for name, module in procedure.modules.items()}

    def after_step(state):
        for name, module in procedure.modules.items():
            now = copy.deepcopy(module.state_dict())
            seen[name].append(any(not torch.equal(now[key], previous[name][key]) for key in now))
            previous[name] = now

    procedure.after_step = after_step
    Trainer(TrainingConfig(steps=5, batch_size=16), progress=False).run(procedure, _task())
    assert seen == {"generator": [True, False, False, True, False], "fake_score": [True] * 5, "head": [True] * 5}


def test_the_generator_learns_through_the_head():
    procedure = _procedure(matching_weight=0.0)
    loss = procedure.step({"pixel_values": torch.randn(8, 2)}, STATE)["generator"]
    gradients = torch.autograd.grad(loss.value, list(procedure.generator.parameters()), allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("inputs", ["simulated", "data"])
def test_later_times_are_given_own_samples_or_noised_data(inputs):
    procedure, data = _procedure(times=(90, 50, 10), inputs=inputs), torch.randn(8, 2)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        noisy, timestep = procedure.generator_inputs(data, None)
        torch.manual_seed(seed)
        at = int(torch.randint(3, ()))
        noise, x = torch.randn(8, 2), data
        if inputs == "simulated" and at:
            x = procedure.generator(torch.randn(8, 2), torch.full((8,), 90))
        if inputs == "simulated" and at == 2:
            t = torch.full((8,), 50)
            x = procedure.generator(SCHEDULE.add_noise(x, torch.randn(8, 2), t), t)
        t = torch.full((8,), (90, 50, 10)[at])
        expected = noise if at == 0 else SCHEDULE.add_noise(x, noise, t)
        assert torch.equal(timestep, t) and torch.allclose(noisy, expected, atol=1e-6)
        seen.add(at)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize(
    "settings",
    [
        {"times": ()},
        {"times": (10, 20)},
        {"times": (100,)},
        {"critic_updates": 0},
        {"window": (0.5, 0.5)},
        {"inputs": "real"},
        {"head": None},
        {"features": ""},
        {"head": None, "features": "", "matching_weight": 0},
    ],
)
def test_bad_arguments_are_refused(settings):
    with pytest.raises(UsageError):
        _procedure(**settings)


def test_one_module_in_two_roles_is_refused():
    one = _denoiser()
    with pytest.raises(UsageError, match="copy"):
        DistributionMatching(one, MixtureDenoiser(ring(), SCHEDULE), one, times=(9,))
