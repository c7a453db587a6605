"""Score distillation: SDS as the limit of VSD, directions in closed form, who moves."""

import copy

import pytest
import torch

from limbeck.diffusion import (
    Denoiser,
    GaussianMixture,
    MixtureDenoiser,
    NoiseSchedule,
    ParticleDenoiser,
    Particles,
    ScoreDistillation,
    TimeWindow,
    distillation_direction,
    from_clean,
    ring,
)
from limbeck.errors import UsageError
from limbeck.models.denoising_mlp import denoising_mlp
from limbeck.tasks.custom import CustomTask
from limbeck.training import Trainer, TrainingConfig
from limbeck.training.procedures import State

SCHEDULE = NoiseSchedule(steps=100, first=1e-3, last=0.1)
TEACHER = MixtureDenoiser(ring(), SCHEDULE)
STATE = State(0, 10, 0.0, 0, torch.device("cpu"))


def _network():
    network = denoising_mlp((2,), width=16, blocks=1, steps=100)
    torch.nn.init.normal_(network.outlet.weight)
    return Denoiser(network, SCHEDULE)


def _task():
    x, y = ring().sample(64)
    return CustomTask(dict.fromkeys(("train", "validation", "test"), (x, y)), classes=8)


def test_the_direction_is_the_weighted_difference_of_noises():
    t = torch.tensor([10, 50, 90])
    noisy, real, fake = (torch.randn(3, 2).double() for _ in range(3))
    alpha_bar = SCHEDULE.at(t, noisy)
    noises = [from_clean(estimate, noisy, alpha_bar, "noise") for estimate in (real, fake)]
    expected = (1 - alpha_bar) * (noises[0] - noises[1])
    assert torch.allclose(distillation_direction(real, fake, alpha_bar), expected, atol=1e-10)


def _gradient(procedure):
    torch.manual_seed(3)
    loss = procedure.step({"pixel_values": torch.zeros(1, 2)}, STATE)["particles"]
    return torch.autograd.grad(loss.value, procedure.particles.canvas)[0]


def test_vsd_with_the_exact_score_of_a_dirac_is_sds():
    one = Particles(1, (2,))
    sds, vsd = (ScoreDistillation(one, TEACHER, fake, learns=False) for fake in (None, ParticleDenoiser(one, SCHEDULE)))
    assert torch.allclose(_gradient(sds), _gradient(vsd), atol=1e-6)
    # and with the formula that SDS is published with, w (e_real - e)
    torch.manual_seed(3)
    t = TimeWindow().draw(1, 100, 0.0)
    noise = torch.randn(1, 2)
    x_t = SCHEDULE.add_noise(one.canvas.detach(), noise, t)
    alpha_bar = SCHEDULE.at(t, x_t)
    e_real = from_clean(TEACHER(x_t, t), x_t, alpha_bar, "noise")
    assert torch.allclose(_gradient(sds), (1 - alpha_bar) * (e_real - noise), atol=1e-5)


def test_several_particles_are_not_a_dirac():
    many = Particles(5, (2,), scale=0.1)
    sds, vsd = (
        ScoreDistillation(many, TEACHER, fake, learns=False) for fake in (None, ParticleDenoiser(many, SCHEDULE))
    )
    assert not torch.allclose(_gradient(sds), _gradient(vsd), atol=1e-3)


def test_the_particle_denoiser_is_a_mixture_that_has_no_width():
    particles = Particles(4, (2,), conditions=torch.tensor([0, 0, 1, 1]))
    mixture = GaussianMixture(tuple(map(tuple, particles.canvas.tolist())), 1e-4, labels=(0, 0, 1, 1))
    x, t = torch.randn(3, 2), torch.tensor([10, 40, 80])
    for condition in (None, torch.tensor([1, 0, 1])):
        found = ParticleDenoiser(particles, SCHEDULE)(x, t, condition)
        assert torch.allclose(found, MixtureDenoiser(mixture, SCHEDULE)(x, t, condition), atol=1e-3)


def test_the_gradient_goes_through_the_renderer():
    particles, matrix = Particles(3, (2,)), torch.tensor([[2.0, 1.0], [0.0, -1.0]])
    procedure = ScoreDistillation(particles, TEACHER, render=lambda canvas: canvas @ matrix)
    found = _gradient(procedure)
    torch.manual_seed(3)
    direction = procedure.direction((particles.canvas @ matrix).detach(), None, 0.0)
    assert torch.allclose(found, direction @ matrix.T / 3, atol=1e-6)


def test_particles_with_the_exact_fake_score_keep_the_spread_that_sds_loses():
    teacher = MixtureDenoiser(GaussianMixture(((0.5, 0.0),), 0.6), SCHEDULE)
    spread = {}
    for name in ("sds", "vsd"):
        torch.manual_seed(0)
        particles = Particles(150, (2,))
        fake = ParticleDenoiser(particles, SCHEDULE) if name == "vsd" else None
        procedure = ScoreDistillation(particles, teacher, fake, learns=False, times=TimeWindow(low=0.2))
        config = TrainingConfig(steps=150, batch_size=8, learning_rate=0.03)
        Trainer(config, progress=False).run(procedure, _task())
        assert torch.allclose(particles.canvas.mean(0), torch.tensor([0.5, 0.0]), atol=0.1)
        spread[name] = particles.canvas.std().item()
    assert 1.5 * spread["sds"] < spread["vsd"] and abs(spread["vsd"] - 0.6) < 0.15, spread


@pytest.mark.parametrize("learns", [True, False])
def test_the_fake_score_moves_only_when_it_learns(learns):
    particles, fake = Particles(6, (2,)), _network()
    before, canvas = copy.deepcopy(fake.state_dict()), particles.canvas.detach().clone()
    procedure = ScoreDistillation(particles, TEACHER, fake, learns=learns)
    Trainer(TrainingConfig(steps=2, batch_size=4), progress=False).run(procedure, _task())
    moved = any(not torch.equal(value, before[name]) for name, value in fake.state_dict().items())
    assert moved == learns and not torch.equal(particles.canvas, canvas)


def test_times_narrow_after_the_switch():
    window = TimeWindow(switch=0.5)
    early, late = window.draw(5000, 100, 0.49), window.draw(5000, 100, 0.5)
    assert (early.min(), early.max(), late.min(), late.max()) == (2, 98, 2, 50)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeWindow(low=0.5),
        lambda: TimeWindow(switch=2),
        lambda: Particles(0, (2,)),
        lambda: Particles(2, (2,), conditions=torch.zeros(3)),
        lambda: ScoreDistillation(Particles(2, (2,)), TEACHER, TEACHER),
        lambda: ScoreDistillation(Particles(2, (2,)), TEACHER, ParticleDenoiser(Particles(2, (2,)), SCHEDULE)),
        lambda: ScoreDistillation(Particles(2, (2,)), TEACHER, drop=2),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(UsageError):
        make()
