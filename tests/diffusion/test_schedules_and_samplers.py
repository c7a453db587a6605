"""Schedules, conversions, samplers: against closed forms and, where it is installed, diffusers."""

import math

import pytest
import torch

from limbeck.diffusion import (
    Denoiser,
    GaussianMixture,
    Guided,
    MixtureDenoiser,
    NoiseSchedule,
    denoising_loss,
    from_clean,
    generate,
    ring,
    sample,
    sampler_step,
    to_clean,
)
from limbeck.diffusion.schedules import KINDS, PREDICTIONS
from limbeck.errors import UsageError
from limbeck.models.denoising_mlp import denoising_mlp


def test_alpha_bar_is_the_running_product():
    schedule = NoiseSchedule(steps=5, first=0.1, last=0.5)
    product, expected = 1.0, []
    for beta in (0.1, 0.2, 0.3, 0.4, 0.5):
        product *= 1 - beta
        expected.append(product)
    assert torch.allclose(schedule.alpha_bar, torch.tensor(expected))


def test_cosine_follows_its_closed_form():
    schedule, f = NoiseSchedule(kind="cosine"), lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    for t in (0, 10, 500, 900):
        assert schedule.alpha_bar[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_prediction_of_the_truth_gives_the_truth(prediction):
    schedule, t = NoiseSchedule(), torch.tensor([3, 400, 900])
    clean, noise = torch.randn(3, 2, 4).double(), torch.randn(3, 2, 4).double()
    alpha_bar = schedule.at(t, clean)
    noisy = schedule.add_noise(clean, noise, t)
    truth = {
        "noise": noise,
        "clean": clean,
        "velocity": alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * clean,
    }[prediction]
    assert torch.allclose(from_clean(clean, noisy, alpha_bar, prediction), truth, atol=1e-5)
    assert torch.allclose(to_clean(truth, noisy, alpha_bar, prediction), clean, atol=1e-5)


@pytest.mark.parametrize("weighting", PREDICTIONS)
def test_denoising_loss_is_the_squared_error_of_the_prediction(weighting):
    schedule, t = NoiseSchedule(), torch.tensor([50, 400, 900])
    clean, noise = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    alpha_bar, noisy = schedule.at(t, clean), schedule.add_noise(clean, noise, t)
    output = torch.randn(3, 4).double()
    expected = (output - from_clean(clean, noisy, alpha_bar, weighting)).square().mean()
    found = denoising_loss(to_clean(output, noisy, alpha_bar, weighting), clean, alpha_bar, weighting)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_step_with_the_true_clean_data_keeps_the_marginal(eta):
    """From x_t ~ q(x_t | x_0), the step's x' has mean a' x_0 and variance 1 - alpha_bar'."""
    schedule, count = NoiseSchedule(), 200_000
    now, then = schedule.alpha_bar[700], schedule.alpha_bar[300]
    clean = torch.full((count, 1), 1.5)
    noisy = now.sqrt() * clean + (1 - now).sqrt() * torch.randn(count, 1)
    x = sampler_step(clean, noisy, now, then, eta, torch.randn(count, 1))
    assert x.mean().item() == pytest.approx(1.5 * then.sqrt().item(), abs=0.01)
    assert x.var().item() == pytest.approx(1 - then.item(), abs=0.01)


def test_ancestral_steps_are_the_posterior_of_ddpm():
    """eta 1 between neighbours: q(x_{t-1} | x_t, x_0) of Ho et al., eq. 6 and 7."""
    schedule, t = NoiseSchedule(), 500
    now, before = schedule.alpha_bar[t].double(), schedule.alpha_bar[t - 1].double()
    beta = 1 - now / before
    clean, noisy = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    mean = before.sqrt() * beta / (1 - now) * clean + (1 - beta).sqrt() * (1 - before) / (1 - now) * noisy
    variance = (1 - before) / (1 - now) * beta
    noise = torch.randn(5, 3).double()
    assert torch.allclose(sampler_step(clean, noisy, now, before, 1.0, noise), mean + variance.sqrt() * noise)


def test_a_sampler_with_the_exact_denoiser_draws_from_the_mixture():
    mixture = GaussianMixture(((-1.0,), (1.0,)), 0.2, weights=(1.0, 3.0))
    teacher = MixtureDenoiser(mixture, NoiseSchedule())
    for eta in (0.0, 1.0):
        made = sample(teacher, torch.randn(4000, 1), 100, eta)
        assert (made > 0).double().mean().item() == pytest.approx(0.75, abs=0.03)
        assert made[made > 0].std().item() == pytest.approx(0.2, abs=0.03)  # of 100 steps


def test_generate_is_estimate_noise_estimate():
    mixture = ring()
    teacher = MixtureDenoiser(mixture, NoiseSchedule())
    noise = torch.randn(6, 2)
    once = generate(teacher, noise, (999,))
    assert torch.equal(once, teacher(noise, torch.full((6,), 999)))
    twice = generate(teacher, noise, (999, 400), draws=torch.Generator().manual_seed(1))
    fresh = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    t = torch.full((6,), 400)
    assert torch.equal(twice, teacher(teacher.schedule.add_noise(once, fresh, t), t))


def test_guidance_is_a_line_in_noise_too():
    teacher, t = MixtureDenoiser(ring(), NoiseSchedule()), torch.tensor([500, 700])
    x, c = torch.randn(2, 2), torch.tensor([1, 4])
    alpha_bar = teacher.schedule.at(t, x)
    noise = [from_clean(d, x, alpha_bar, "noise") for d in (teacher(x, t), teacher(x, t, c))]
    expected = noise[0] + 7.5 * (noise[1] - noise[0])
    found = from_clean(Guided(teacher, 7.5)(x, t, c), x, alpha_bar, "noise")
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(Guided(teacher, 1.0)(x, t, c), teacher(x, t, c))


def test_spaced_times_end_at_the_ends():
    schedule = NoiseSchedule()
    assert schedule.spaced(4) == (999, 749, 499, 249)
    assert schedule.spaced(1) == (999,) and schedule.spaced(1000) == tuple(range(999, -1, -1))


def test_the_network_takes_conditions_and_their_absence_alike():
    network = denoising_mlp((1, 3, 3), width=16, blocks=2, classes=4)
    torch.nn.init.normal_(network.outlet.weight)
    torch.nn.init.normal_(network.blocks[0].outer.weight)
    x, t = torch.randn(5, 1, 3, 3), torch.arange(5) * 200
    free = network(x, t)
    assert free.shape == x.shape
    assert torch.equal(free, network(x, t, torch.full((5,), -1)))
    assert not torch.equal(free, network(x, t, torch.arange(5) % 4))
    assert not torch.equal(free, network(x, t.flip(0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: NoiseSchedule(steps=1),
        lambda: NoiseSchedule(kind="quadratic"),
        lambda: NoiseSchedule(first=0.3, last=0.2),
        lambda: NoiseSchedule().spaced(0),
        lambda: Denoiser(torch.nn.Identity(), NoiseSchedule(), "score"),
        lambda: denoising_mlp((2,), width=15),
        lambda: denoising_mlp(()),
        lambda: denoising_loss(torch.zeros(1), torch.zeros(1), torch.ones(1), "edm"),
        lambda: sampler_step(torch.zeros(1), torch.zeros(1), torch.tensor(0.1), torch.tensor(0.5), eta=1.0),
        lambda: sample(MixtureDenoiser(ring(), NoiseSchedule()), torch.zeros(1, 2), 2, eta=-1),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(UsageError):
        make()


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_bar_equals_diffusers(kind):
    diffusers = pytest.importorskip("diffusers")
    name = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}[kind]
    theirs = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=name).alphas_cumprod
    # theirs is a product in float32
    assert torch.allclose(NoiseSchedule(kind=kind).alpha_bar, theirs, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_steps_equal_diffusers(prediction, eta):
    diffusers = pytest.importorskip("diffusers")
    names = {"noise": "epsilon", "clean": "sample", "velocity": "v_prediction"}
    theirs = diffusers.DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        prediction_type=names[prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(4)
    ours = NoiseSchedule()
    assert tuple(theirs.timesteps.tolist()) == ours.spaced(4)
    times, x, output = ours.spaced(4), torch.randn(3, 2), torch.randn(3, 2)
    for now, after in zip(times, (*times[1:], None)):
        noise = torch.randn(3, 2)
        alpha_bar = ours.alpha_bar[now]
        following = torch.tensor(1.0) if after is None else ours.alpha_bar[after]
        clean = to_clean(output, x, alpha_bar, prediction)
        found = sampler_step(clean, x, alpha_bar, following, eta, noise)
        expected = theirs.step(output, now, x, eta=eta, variance_noise=noise)
        assert torch.allclose(clean, expected.pred_original_sample, rtol=1e-3, atol=1e-3)
        assert torch.allclose(found, expected.prev_sample, rtol=1e-3, atol=1e-3)
        noisy = theirs.add_noise(x, noise, torch.full((3,), now))
        assert torch.allclose(ours.add_noise(x, noise, torch.full((3,), now)), noisy, atol=1e-4)
